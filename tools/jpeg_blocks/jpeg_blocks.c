/* Replace blocks of a JPEG's quantized coefficients; libjpeg-turbo reads them.
 *
 * The module works on one JPEG: a host calls `allocate` for its arguments, `open`, `replace` for
 * each component, then `splice`, or `read` and `write`, and `size`. It then throws the instance
 * away. The module imports nothing. Every error and every warning of the library is a trap.
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
#define MOST_COMPONENTS 4

/* The place of each coefficient in a block (jpegint.h), and the best codes (jchuff.h). */
extern const int jpeg_natural_order[];
extern void jpeg_gen_optimal_table(j_compress_ptr target, JHUFF_TBL *table, long counts[]);

static uint8_t *result;
static size_t result_size;

static JDIMENSION mcus(JDIMENSION pixels, int factor) {
  return (pixels + DCTSIZE * factor - 1) / (DCTSIZE * factor);
}

static JDIMENSION padded(JDIMENSION blocks, int factor) {
  return (blocks + factor - 1) / factor * factor;
}

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

/* The picture, and the blocks that replace some of its own. */

static struct jpeg_decompress_struct picture;
static struct jpeg_source_mgr picture_input;
static jvirt_barray_ptr *picture_blocks;
static struct {
  JBLOCK *blocks;
  const uint32_t *places; /* column and row of each block */
  uint32_t count;
} patches[MOST_COMPONENTS];

/* Open the JPEG `content`: read it up to the data of its first scan. */
EXPORT("open") void open_picture(const uint8_t *content, size_t size) {
  open(&picture, &picture_input, content, size);
  REQUIRE(picture.num_components <= MOST_COMPONENTS);
}

/* Take `count` blocks of the component `number` from `content`, row by row.
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
  JQUANT_TBL *table = picture.quant_tbl_ptrs[to->quant_tbl_no];
  REQUIRE(table && !memcmp(table->quantval, from->quant_table->quantval, sizeof table->quantval));
  REQUIRE(count <= from->width_in_blocks * from->height_in_blocks);
  JBLOCK *blocks = allocate(sizeof(JBLOCK) * count);
  for (uint32_t block = 0; block < count; block++) {
    JDIMENSION row = block / from->width_in_blocks, column = block % from->width_in_blocks;
    REQUIRE(places[2 * block] < padded(to->width_in_blocks, to->h_samp_factor));
    REQUIRE(places[2 * block + 1] < padded(to->height_in_blocks, to->v_samp_factor));
    JBLOCKARRAY source = patch.mem->access_virt_barray(
      (j_common_ptr)&patch, patch_blocks, row, 1, FALSE);
    memcpy(blocks[block], source[0][column], sizeof(JBLOCK));
  }
  patches[number].blocks = blocks;
  patches[number].places = places;
  patches[number].count = count;
}

/* The scan of a sequential picture that has only one, with its own Huffman tables.
 *
 * The codes of blocks that stay are copied, in a quarter of the time of `read` and `write`.
 * Only the difference of a DC coefficient from that before it is coded anew where that is replaced.
 */

#define LOOK_BITS 9
#define MAX_CODE_BITS 16
#define MAX_DC_BITS 11
#define MAX_AC_BITS 10
#define MAX_BLOCK_BYTES 512
#define SPARE_BYTES 16384

typedef struct {
  uint16_t look[1 << LOOK_BITS]; /* length << 8 | symbol, or 0 for longer codes */
  int32_t last_code[MAX_CODE_BITS + 1], first_value[MAX_CODE_BITS + 1];
  uint8_t values[256], lengths[256];
  uint32_t codes[256];
} Table;

static Table tables[2][NUM_HUFF_TBLS];
static int failed;

static void prepare(Table *table, const JHUFF_TBL *source) {
  memset(table, 0, sizeof *table);
  int value = 0, code = 0;
  for (int length = 1; length <= MAX_CODE_BITS; length++, code <<= 1) {
    table->first_value[length] = value - code;
    for (int number = 0; number < source->bits[length]; number++, value++, code++) {
      if (value >= 256 || code >= 1 << length) { failed = 1; return; }
      int symbol = source->huffval[value], shift = LOOK_BITS - length;
      table->values[value] = symbol;
      table->lengths[symbol] = length;
      table->codes[symbol] = code;
      for (int rest = 0; shift >= 0 && rest < 1 << shift; rest++)
        table->look[(code << shift) + rest] = length << 8 | symbol;
    }
    table->last_code[length] = source->bits[length] ? code - 1 : -1;
  }
}

static const uint8_t *next, *last;
static uint64_t bits;
static int available; /* bits, of which so many are `invented` after the end of the data */
static int invented;

static inline void refill(void) {
  if (available > 32) return;
  if (last - next >= 4) {
    uint32_t word = (uint32_t)next[0] << 24 | next[1] << 16 | next[2] << 8 | next[3];
    if (!((~word - 0x01010101u) & word & 0x80808080u)) { /* no byte is 0xFF */
      bits = bits << 32 | word;
      available += 32;
      next += 4;
      return;
    }
  }
  for (; available <= 56; available += 8) {
    unsigned byte = 0;
    if (next < last && *next != 0xFF) byte = *next++;
    else if (last - next >= 2 && !next[1]) byte = 0xFF, next += 2;
    else invented += 8;
    bits = bits << 8 | byte;
  }
}

static inline uint32_t peek(int count) {
  return (uint32_t)(bits >> (available - count)) & (uint32_t)((1ull << count) - 1);
}

/* Return the length of the next code << 8 | its symbol. */
static inline unsigned next_symbol(const Table *table) {
  refill();
  unsigned found = table->look[peek(LOOK_BITS)];
  if (found) return found;
  for (int length = LOOK_BITS + 1; length <= MAX_CODE_BITS; length++) {
    int32_t code = peek(length);
    if (code <= table->last_code[length])
      return length << 8 | table->values[(code + table->first_value[length]) & 255];
  }
  failed = 1;
  return 1 << 8;
}

static uint8_t *end;
static uint64_t pending;
static int pending_bits;

static inline void put_byte(unsigned byte) {
  *end++ = byte;
  if (byte == 0xFF) *end++ = 0;
}

static inline void put(uint32_t code, int count) {
  pending = pending << count | code;
  pending_bits += count;
  if (pending_bits < 32) return;
  pending_bits -= 32;
  uint32_t word = (uint32_t)(pending >> pending_bits);
  if ((~word - 0x01010101u) & word & 0x80808080u) {
    put_byte(word >> 24), put_byte(word >> 16 & 255);
    put_byte(word >> 8 & 255), put_byte(word & 255);
    return;
  }
  end[0] = word >> 24, end[1] = word >> 16, end[2] = word >> 8, end[3] = word;
  end += 4;
}

/* Fill the last byte with ones (T.81, F.1.2.3). */
static void align(void) {
  int missing = -pending_bits & 7;
  put((1u << missing) - 1, missing);
  for (; pending_bits > 0; pending_bits -= 8) put_byte(pending >> (pending_bits - 8) & 255);
}

static inline void put_symbol(const Table *table, unsigned symbol) {
  if (!table->lengths[symbol]) failed = 1;
  put(table->codes[symbol], table->lengths[symbol]);
}

/* Put `value` with so many zeros before it, or the difference of a DC coefficient with none. */
static inline void put_value(const Table *table, int zeros, int value, int max_bits) {
  int size = value ? 32 - __builtin_clz(value < 0 ? -value : value) : 0;
  if (size > max_bits) failed = 1;
  put_symbol(table, zeros << 4 | size);
  put((value < 0 ? value - 1 : value) & ((1u << size) - 1), size);
}

static void put_block(const Table *dc, const Table *ac, const JCOEF *block, int difference) {
  put_value(dc, 0, difference, MAX_DC_BITS);
  int zeros = 0;
  for (int place = 1; place < DCTSIZE2; place++) {
    int value = block[jpeg_natural_order[place]];
    if (!value) { zeros++; continue; }
    for (; zeros > 15; zeros -= 16) put_symbol(ac, 0xF0);
    put_value(ac, zeros, value, MAX_AC_BITS);
    zeros = 0;
  }
  if (zeros) put_symbol(ac, 0);
}

/* Pass over the AC coefficients of a block; put their codes if it is `kept`. */
static inline void pass_block(const Table *ac, int kept) {
  for (int place = 1; place < DCTSIZE2;) {
    unsigned found = next_symbol(ac);
    int zeros = found >> 4 & 15, size = found & 15, count = (found >> 8) + size;
    if (kept) put(peek(count), count);
    available -= count;
    if (size) place += zeros + 1;
    else if (zeros == 15) place += 16;
    else return;
    if (place > DCTSIZE2) failed = 1;
  }
}

static int next_difference(const Table *dc) {
  unsigned found = next_symbol(dc);
  int size = found & 255;
  available -= found >> 8;
  if (size > MAX_DC_BITS) { failed = 1; return 0; }
  if (!size) return 0;
  int value = peek(size);
  available -= size;
  return value >> (size - 1) ? value : value - (1 << size) + 1;
}

/* Skip the rest of a byte, after which the marker follows; return whether it does. */
static int skip_to(unsigned marker) {
  int whole = available - invented < 8 && available >= invented;
  available = invented = 0;
  if (!whole || last - next < 2 || next[0] != 0xFF || next[1] != marker) return 0;
  next += 2;
  return 1;
}

/* Return where the `size` bytes of the scan begin, or 0 if `read` and `write` are needed. */
EXPORT("splice") uint8_t *splice(void) {
  if (picture.progressive_mode || picture.arith_code) return 0;
  if (picture.comps_in_scan != picture.num_components) return 0;
  uint32_t *maps[MOST_COMPONENTS], total = 0;
  JDIMENSION widths[MOST_COMPONENTS];
  int across[MOST_COMPONENTS], down[MOST_COMPONENTS];
  int before[MOST_COMPONENTS], put_before[MOST_COMPONENTS];
  int single = picture.num_components == 1;
  jpeg_component_info *components = picture.comp_info;
  JDIMENSION columns = single ? components->width_in_blocks
    : mcus(picture.image_width, picture.max_h_samp_factor);
  JDIMENSION rows = single ? components->height_in_blocks
    : mcus(picture.image_height, picture.max_v_samp_factor);
  failed = 0;
  for (int number = 0; number < picture.num_components; number++) {
    jpeg_component_info *component = components + number;
    JHUFF_TBL *dc = picture.dc_huff_tbl_ptrs[component->dc_tbl_no & 3];
    JHUFF_TBL *ac = picture.ac_huff_tbl_ptrs[component->ac_tbl_no & 3];
    if (!dc || !ac) return 0;
    prepare(&tables[0][component->dc_tbl_no & 3], dc);
    prepare(&tables[1][component->ac_tbl_no & 3], ac);
    across[number] = single ? 1 : component->h_samp_factor;
    down[number] = single ? 1 : component->v_samp_factor;
    widths[number] = padded(component->width_in_blocks, component->h_samp_factor);
    JDIMENSION height = padded(component->height_in_blocks, component->v_samp_factor);
    size_t blocks = (size_t)widths[number] * height;
    maps[number] = allocate(blocks * sizeof(uint32_t));
    memset(maps[number], 0, blocks * sizeof(uint32_t));
    for (uint32_t block = 0; block < patches[number].count; block++) {
      const uint32_t *place = patches[number].places + 2 * block;
      maps[number][place[1] * widths[number] + place[0]] = block + 1;
    }
    total += patches[number].count;
    before[number] = put_before[number] = 0;
  }
  next = picture_input.next_input_byte;
  last = next + picture_input.bytes_in_buffer;
  available = invented = pending_bits = 0;
  size_t capacity = 2 * picture_input.bytes_in_buffer + SPARE_BYTES;
  capacity += (size_t)total * MAX_BLOCK_BYTES;
  end = result = allocate(capacity);
  uint32_t mcu = 0;
  for (JDIMENSION row = 0; row < rows; row++) {
    for (JDIMENSION column = 0; column < columns; column++, mcu++) {
      if (picture.restart_interval && mcu && mcu % picture.restart_interval == 0) {
        unsigned marker = 0xD0 + (mcu / picture.restart_interval - 1) % 8;
        if (!skip_to(marker)) return 0;
        align();
        *end++ = 0xFF, *end++ = marker;
        memset(before, 0, sizeof before), memset(put_before, 0, sizeof put_before);
      }
      for (int number = 0; number < picture.num_components; number++) {
        const Table *dc = &tables[0][components[number].dc_tbl_no & 3];
        const Table *ac = &tables[1][components[number].ac_tbl_no & 3];
        for (int block = 0; block < across[number] * down[number]; block++) {
          JDIMENSION x = column * across[number] + block % across[number];
          JDIMENSION y = row * down[number] + block / across[number];
          uint32_t replacement = maps[number][y * widths[number] + x];
          before[number] += next_difference(dc);
          if (replacement) {
            const JCOEF *new = patches[number].blocks[replacement - 1];
            pass_block(ac, 0);
            put_block(dc, ac, new, new[0] - put_before[number]);
            put_before[number] = new[0];
          } else {
            put_value(dc, 0, before[number] - put_before[number], MAX_DC_BITS);
            pass_block(ac, 1);
            put_before[number] = before[number];
          }
        }
      }
      if (failed || invented > available) return 0;
      if (end - result + SPARE_BYTES > (ptrdiff_t)capacity) return 0;
    }
  }
  if (!skip_to(0xD9)) return 0;
  align();
  result_size = end - result;
  return result;
}

/* Scans with new Huffman tables. The symbols of a scan are recorded, counted, and then put. */

#define RAW 4          /* the kind of an item that has bits, but no symbol */
#define RESTART 5      /* the kind of an item that is a restart marker */
#define MAX_RUN 0x7FFF /* blocks without further coefficients (T.81, G.1.2.2) */
#define MAX_CORRECTIONS 1000
#define KINDS 4

static uint32_t *items; /* symbol | kind << 8 | count of bits << 12 | bits << 16 */
static size_t item_count, item_capacity;
static int run;         /* blocks without further coefficients that are not recorded yet */
static uint8_t corrections[MAX_CORRECTIONS + DCTSIZE2];
static int correction_count;

static void *enlarged(void *start, size_t size, size_t wanted) {
  if ((size_t)start + size == used) {
    allocate(wanted - size);
    used = (size_t)start + wanted;
    return start;
  }
  void *copy = allocate(wanted);
  memcpy(copy, start, size);
  return copy;
}

static inline void record(int kind, int symbol, int count, uint32_t value) {
  if (item_count == item_capacity) {
    size_t size = item_capacity * sizeof *items;
    items = enlarged(items, size, 2 * size + PAGE);
    item_capacity = (2 * size + PAGE) / sizeof *items;
  }
  items[item_count++] = symbol | kind << 8 | count << 12 | value << 16;
}

static void record_corrections(const uint8_t *values, int count) {
  for (int number = 0; number < count; number++) record(RAW, 0, 1, values[number]);
}

static void record_run(int kind) {
  if (!run) return;
  int size = 31 - __builtin_clz(run);
  record(kind, size << 4, size, run & ((1 << size) - 1));
  record_corrections(corrections, correction_count);
  run = correction_count = 0;
}

/* Record the run before a coefficient; the block's own corrections then move to the front. */
static void record_run_before(int kind, uint8_t **own, int count) {
  record_run(kind);
  memmove(corrections, *own, count);
  *own = corrections;
}

static inline int bit_size(int value) { return value ? 32 - __builtin_clz(value) : 0; }

static inline void record_value(int kind, int zeros, int value) {
  int size = bit_size(value < 0 ? -value : value);
  record(kind, zeros << 4 | size, size, (value < 0 ? value - 1 : value) & ((1 << size) - 1));
}

static void record_first(int kind, const JCOEF *block, const jpeg_scan_info *scan, int first) {
  int zeros = 0;
  for (int place = first; place <= scan->Se; place++) {
    int value = block[jpeg_natural_order[place]];
    int size = (value < 0 ? -value : value) >> scan->Al;
    if (!size) { zeros++; continue; }
    record_run(kind);
    for (; zeros > 15; zeros -= 16) record(kind, 0xF0, 0, 0);
    record_value(kind, zeros, value < 0 ? -size : size);
    zeros = 0;
  }
  if (!zeros) return;
  if (!picture.progressive_mode) record(kind, 0, 0, 0);
  else if (++run == MAX_RUN) record_run(kind);
}

/* T.81, G.1.2.3 */
static void record_refinement(int kind, const JCOEF *block, const jpeg_scan_info *scan) {
  int sizes[DCTSIZE2], last_new = 0, zeros = 0, own = 0;
  for (int place = scan->Ss; place <= scan->Se; place++) {
    int value = block[jpeg_natural_order[place]];
    sizes[place] = (value < 0 ? -value : value) >> scan->Al;
    if (sizes[place] == 1) last_new = place;
  }
  uint8_t *values = corrections + correction_count;
  for (int place = scan->Ss; place <= scan->Se; place++) {
    if (!sizes[place]) { zeros++; continue; }
    for (; zeros > 15 && place <= last_new; zeros -= 16) {
      record_run_before(kind, &values, own);
      record(kind, 0xF0, 0, 0);
      record_corrections(values, own);
      own = 0;
    }
    if (sizes[place] > 1) { values[own++] = sizes[place] & 1; continue; }
    record_run_before(kind, &values, own);
    record(kind, zeros << 4 | 1, 1, block[jpeg_natural_order[place]] >= 0);
    record_corrections(values, own);
    own = zeros = 0;
  }
  if (!zeros && !own) return;
  run++;
  correction_count += own;
  if (run == MAX_RUN || correction_count > MAX_CORRECTIONS - DCTSIZE2) record_run(kind);
}

static void record_block(int number, const JCOEF *block, const jpeg_scan_info *scan,
                         int *dc_before) {
  int dc = number > 0, ac = 2 + (number > 0);
  if (scan->Ss == 0 && scan->Ah) {
    record(RAW, 0, 1, block[0] >> scan->Al & 1);
  } else if (scan->Ss == 0) {
    int value = block[0] >> scan->Al;
    record_value(dc, 0, value - dc_before[number]);
    dc_before[number] = value;
  }
  if (scan->Se == 0) return;
  if (scan->Ah) record_refinement(ac, block, scan);
  else record_first(ac, block, scan, scan->Ss ? scan->Ss : 1);
}

/* Return the blocks of a row of the component `number`; below the edge, those of the last row. */
static JBLOCKROW row_of(int number, JDIMENSION row) {
  JDIMENSION last_row = picture.comp_info[number].height_in_blocks - 1;
  return picture.mem->access_virt_barray((j_common_ptr)&picture, picture_blocks[number],
                                         row < last_row ? row : last_row, 1, FALSE)[0];
}

/* Return a block of `blocks`; beyond the edges it has the DC coefficient of the last one within. */
static const JCOEF *block_of(JBLOCKROW blocks, JDIMENSION column, JDIMENSION width, int below) {
  static JCOEF beyond[DCTSIZE2];
  if (column < width && !below) return blocks[column];
  beyond[0] = blocks[column < width ? column : width - 1][0];
  return beyond;
}

static void record_scan(const jpeg_scan_info *scan) {
  int single = scan->comps_in_scan == 1, dc_before[MOST_COMPONENTS] = {0};
  jpeg_component_info *first = picture.comp_info + scan->component_index[0];
  JDIMENSION columns = single ? first->width_in_blocks
    : mcus(picture.image_width, picture.max_h_samp_factor);
  JDIMENSION rows = single ? first->height_in_blocks
    : mcus(picture.image_height, picture.max_v_samp_factor);
  item_count = run = correction_count = 0;
  uint32_t mcu = 0;
  for (JDIMENSION row = 0; row < rows; row++) {
    JBLOCKROW lines[MOST_COMPONENTS][MAX_SAMP_FACTOR];
    for (int place = 0; place < scan->comps_in_scan; place++) {
      int number = scan->component_index[place];
      int down = single ? 1 : picture.comp_info[number].v_samp_factor;
      for (int line = 0; line < down; line++)
        lines[place][line] = row_of(number, row * down + line);
    }
    for (JDIMENSION column = 0; column < columns; column++, mcu++) {
      if (picture.restart_interval && mcu && mcu % picture.restart_interval == 0) {
        record_run(2 + (scan->component_index[0] > 0));
        record(RESTART, 0xD0 + (mcu / picture.restart_interval - 1) % 8, 0, 0);
        memset(dc_before, 0, sizeof dc_before);
      }
      for (int place = 0; place < scan->comps_in_scan; place++) {
        int number = scan->component_index[place];
        jpeg_component_info *component = picture.comp_info + number;
        int across = single ? 1 : component->h_samp_factor;
        int down = single ? 1 : component->v_samp_factor;
        for (int block = 0; block < across * down; block++) {
          int line = block / across, below = row * down + line >= component->height_in_blocks;
          const JCOEF *values = block_of(lines[place][line], column * across + block % across,
                                         component->width_in_blocks, below);
          record_block(number, values, scan, dc_before);
        }
      }
    }
  }
  record_run(2 + (scan->component_index[0] > 0));
}

static void put_marker(int marker, int length) {
  *end++ = 0xFF, *end++ = marker;
  *end++ = length >> 8, *end++ = length & 255;
}

static void put_scan(const jpeg_scan_info *scan, struct jpeg_compress_struct *target) {
  static long counts[KINDS][257];
  static JHUFF_TBL table;
  static Table codes[KINDS];
  memset(counts, 0, sizeof counts);
  for (size_t number = 0; number < item_count; number++) {
    int kind = items[number] >> 8 & 15;
    if (kind < KINDS) counts[kind][items[number] & 255]++;
  }
  /* No item has more than 32 bits, and stuffing at most doubles them. */
  size_t size = end - result, wanted = size + 8 * item_count + SPARE_BYTES;
  if (wanted > result_size) {
    result = enlarged(result, result_size, 2 * wanted);
    result_size = 2 * wanted;
    end = result + size;
  }
  for (int kind = 0; kind < KINDS; kind++) {
    int symbols = 0, total = 0;
    for (int symbol = 0; symbol < 256; symbol++) symbols += counts[kind][symbol] > 0;
    if (!symbols) continue;
    jpeg_gen_optimal_table(target, &table, counts[kind]);
    prepare(&codes[kind], &table);
    for (int length = 1; length <= MAX_CODE_BITS; length++) total += table.bits[length];
    put_marker(0xC4, 19 + total);
    *end++ = (kind / 2) << 4 | kind % 2;
    memcpy(end, table.bits + 1, MAX_CODE_BITS), end += MAX_CODE_BITS;
    memcpy(end, table.huffval, total), end += total;
  }
  REQUIRE(!failed);
  put_marker(0xDA, 6 + 2 * scan->comps_in_scan);
  *end++ = scan->comps_in_scan;
  for (int place = 0; place < scan->comps_in_scan; place++) {
    int number = scan->component_index[place];
    *end++ = picture.comp_info[number].component_id;
    *end++ = (number > 0) << 4 | (number > 0);
  }
  *end++ = scan->Ss, *end++ = scan->Se, *end++ = scan->Ah << 4 | scan->Al;
  for (size_t number = 0; number < item_count; number++) {
    uint32_t item = items[number];
    int kind = item >> 8 & 15;
    if (kind == RESTART) {
      align();
      *end++ = 0xFF, *end++ = item & 255;
      continue;
    }
    if (kind < KINDS) put_symbol(&codes[kind], item & 255);
    put(item >> 16, item >> 12 & 15);
  }
  align();
  REQUIRE(!failed);
}

/* Read the rest of the picture. */
EXPORT("read") void read(void) { picture_blocks = jpeg_read_coefficients(&picture); }

/* Write the `count` scans of `scans` of the picture, which was read, with new Huffman tables.
 *
 * Returns where the `size` bytes of the segments begin: a start and an end marker are around them.
 */
EXPORT("write") uint8_t *write(const jpeg_scan_info *scans, int count) {
  for (int number = 0; number < picture.num_components; number++)
    for (uint32_t block = 0; block < patches[number].count; block++) {
      const uint32_t *place = patches[number].places + 2 * block;
      JBLOCKARRAY row = picture.mem->access_virt_barray(
        (j_common_ptr)&picture, picture_blocks[number], place[1], 1, TRUE);
      memcpy(row[0][place[0]], patches[number].blocks[block], sizeof(JBLOCK));
    }
  struct jpeg_compress_struct target; /* for the errors of jpeg_gen_optimal_table */
  target.err = &errors;
  failed = pending_bits = 0;
  result_size = SPARE_BYTES;
  end = result = allocate(result_size);
  *end++ = 0xFF, *end++ = 0xD8;
  if (picture.restart_interval) {
    put_marker(0xDD, 4);
    *end++ = picture.restart_interval >> 8, *end++ = picture.restart_interval & 255;
  }
  for (int number = 0; number < count; number++) {
    record_scan(&scans[number]);
    put_scan(&scans[number], &target);
  }
  *end++ = 0xFF, *end++ = 0xD9;
  result_size = end - result;
  return result;
}

EXPORT("size") size_t size(void) { return result_size; }

/* The columns and rows of blocks of the component `number`, and its coefficients. */

EXPORT("columns") JDIMENSION columns(int number) {
  return picture.comp_info[number].width_in_blocks;
}

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
