/* Replace blocks of a JPEG's quantized coefficients, with libjpeg-turbo's transcoder.
 *
 * The module works on one JPEG: a host calls `allocate` for each argument, then `read`, `replace`
 * any number of times, `write` and `size`, and throws the instance away. It imports nothing. Every
 * error and every warning of the library is a trap.
 */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "jpeglib.h"
#include "jmemsys.h"

#define EXPORT(name) __attribute__((export_name(name)))
#define REQUIRE(condition) do { if (!(condition)) __builtin_trap(); } while (0)
#define PAGE 65536
#define ALIGNMENT 16
#define MAX_SCANS 64
#define FIRST_OUTPUT_BYTES 65536

/* Memory: it only grows, because the instance is thrown away. */

extern unsigned char __heap_base;
static size_t used;

EXPORT("allocate") void *allocate(size_t size) {
  if (!used) used = (size_t)&__heap_base;
  size_t start = (used + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
  size_t available = __builtin_wasm_memory_size(0) * PAGE;
  REQUIRE(size <= SIZE_MAX - PAGE - start);
  used = start + size;
  if (used > available)
    REQUIRE(__builtin_wasm_memory_grow(0, (used - available + PAGE - 1) / PAGE) != SIZE_MAX);
  return (void *)start;
}

/* The library's interface to the system's memory (jmemsys.h). */

void *jpeg_get_small(j_common_ptr library, size_t size) { return allocate(size); }
void *jpeg_get_large(j_common_ptr library, size_t size) { return allocate(size); }
void jpeg_free_small(j_common_ptr library, void *block, size_t size) {}
void jpeg_free_large(j_common_ptr library, void *block, size_t size) {}
size_t jpeg_mem_available(j_common_ptr library, size_t min, size_t max, size_t allocated) {
  return max;
}
void jpeg_open_backing_store(j_common_ptr library, backing_store_ptr store, long size) {
  __builtin_trap();
}
long jpeg_mem_init(j_common_ptr library) { return 0; }
void jpeg_mem_term(j_common_ptr library) {}

/* Pictures of 12 bits, which the library's transcoder names but which `read` refuses. */

void j12init_d_coef_controller(j_decompress_ptr source, boolean whole) { __builtin_trap(); }

static void fail(j_common_ptr library) { __builtin_trap(); }
static void fail_if_warning(j_common_ptr library, int level) { REQUIRE(level >= 0); }
static void ignore(j_common_ptr library) {}
static struct jpeg_error_mgr errors = {
  .error_exit = fail,
  .emit_message = fail_if_warning,
  .output_message = ignore,
  .reset_error_mgr = ignore,
};

/* Input from memory. */

static void ignore_source(j_decompress_ptr source) {}
static boolean fail_at_end(j_decompress_ptr source) { __builtin_trap(); }
static void skip(j_decompress_ptr source, long size) {
  REQUIRE(size <= (long)source->src->bytes_in_buffer);
  if (size <= 0) return;
  source->src->next_input_byte += size;
  source->src->bytes_in_buffer -= size;
}

static void open(j_decompress_ptr source, struct jpeg_source_mgr *input, const uint8_t *content,
                 size_t size) {
  source->err = &errors;
  jpeg_create_decompress(source);
  *input = (struct jpeg_source_mgr){
    .next_input_byte = content,
    .bytes_in_buffer = size,
    .init_source = ignore_source,
    .fill_input_buffer = fail_at_end,
    .skip_input_data = skip,
    .resync_to_restart = jpeg_resync_to_restart,
    .term_source = ignore_source,
  };
  source->src = input;
  jpeg_read_header(source, TRUE);
  REQUIRE(source->data_precision == 8);
}

/* Output to memory. Nothing else is allocated while it grows, so that it grows in place. */

static struct jpeg_destination_mgr output;
static uint8_t *result;
static size_t result_size;

static void begin_output(j_compress_ptr target) {
  result_size = FIRST_OUTPUT_BYTES;
  result = allocate(result_size);
  output.next_output_byte = result;
  output.free_in_buffer = result_size;
}

static boolean grow_output(j_compress_ptr target) {
  uint8_t *more = allocate(result_size);
  if (more != result + result_size) {
    uint8_t *whole = allocate(2 * result_size);
    memcpy(whole, result, result_size);
    result = whole;
    more = whole + result_size;
  }
  output.next_output_byte = more;
  output.free_in_buffer = result_size;
  result_size *= 2;
  return TRUE;
}

static void end_output(j_compress_ptr target) { result_size -= output.free_in_buffer; }

/* The picture. */

static struct jpeg_decompress_struct picture;
static struct jpeg_source_mgr picture_input;
static jvirt_barray_ptr *picture_blocks;

/* Read the JPEG `content`. */
EXPORT("read") void read(const uint8_t *content, size_t size) {
  open(&picture, &picture_input, content, size);
  picture_blocks = jpeg_read_coefficients(&picture);
}

/* Replace `count` blocks of the component `number` by those of `content`, row by row.
 *
 * `content` is a gray JPEG with the component's quantization table. `places` has the column and the
 * row of each block in the component.
 */
EXPORT("replace") void replace(int number, const uint8_t *content, size_t size,
                               const uint32_t *places, uint32_t count) {
  struct jpeg_decompress_struct patch;
  struct jpeg_source_mgr patch_input;
  open(&patch, &patch_input, content, size);
  jvirt_barray_ptr patch_blocks = jpeg_read_coefficients(&patch)[0];
  REQUIRE(number >= 0 && number < picture.num_components && patch.num_components == 1);
  jpeg_component_info *to = picture.comp_info + number, *from = patch.comp_info;
  REQUIRE(!memcmp(to->quant_table->quantval, from->quant_table->quantval,
                  sizeof to->quant_table->quantval));
  JDIMENSION columns = (to->width_in_blocks + to->h_samp_factor - 1) / to->h_samp_factor
                       * to->h_samp_factor;
  REQUIRE(count <= from->width_in_blocks * from->height_in_blocks);
  for (uint32_t block = 0; block < count; block++, places += 2) {
    JDIMENSION row = block / from->width_in_blocks, column = block % from->width_in_blocks;
    REQUIRE(places[0] < columns);
    JBLOCKARRAY target = picture.mem->access_virt_barray(
      (j_common_ptr)&picture, picture_blocks[number], places[1], 1, TRUE);
    JBLOCKARRAY source = patch.mem->access_virt_barray(
      (j_common_ptr)&patch, patch_blocks, row, 1, FALSE);
    memcpy(target[0][places[0]], source[0][column], sizeof(JBLOCK));
  }
}

/* Write the picture with the `count` scans of `scans`, and return where its `size` bytes begin.
 *
 * With `optimize` its Huffman tables are made anew; without, it keeps those of the source.
 */
EXPORT("write") uint8_t *write(const jpeg_scan_info *scans, int count, int optimize) {
  struct jpeg_compress_struct target;
  target.err = &errors;
  jpeg_create_compress(&target);
  jpeg_copy_critical_parameters(&picture, &target);
  target.scan_info = scans;
  target.num_scans = count;
  target.restart_interval = picture.restart_interval;
  target.optimize_coding = optimize;
  for (int number = 0; !optimize && number < NUM_HUFF_TBLS; number++) {
    target.dc_huff_tbl_ptrs[number] = picture.dc_huff_tbl_ptrs[number];
    target.ac_huff_tbl_ptrs[number] = picture.ac_huff_tbl_ptrs[number];
  }
  for (int number = 0; !optimize && number < target.num_components; number++) {
    target.comp_info[number].dc_tbl_no = picture.comp_info[number].dc_tbl_no;
    target.comp_info[number].ac_tbl_no = picture.comp_info[number].ac_tbl_no;
  }
  output.init_destination = begin_output;
  output.empty_output_buffer = grow_output;
  output.term_destination = end_output;
  target.dest = &output;
  jpeg_write_coefficients(&target, picture_blocks);
  jpeg_finish_compress(&target);
  return result;
}

EXPORT("size") size_t size(void) { return result_size; }

/* The columns and rows of blocks of the component `number`, and its coefficients, block by block. */

EXPORT("columns") JDIMENSION columns(int number) { return picture.comp_info[number].width_in_blocks; }
EXPORT("rows") JDIMENSION rows(int number) { return picture.comp_info[number].height_in_blocks; }
EXPORT("coefficients") JBLOCK *coefficients(int number) {
  JDIMENSION width = columns(number), height = rows(number);
  JBLOCK *copy = allocate(sizeof(JBLOCK) * width * height);
  for (JDIMENSION row = 0; row < height; row++) {
    JBLOCKARRAY blocks = picture.mem->access_virt_barray(
      (j_common_ptr)&picture, picture_blocks[number], row, 1, FALSE);
    memcpy(copy[(size_t)row * width], blocks[0], sizeof(JBLOCK) * width);
  }
  return copy;
}
