#!/bin/sh
# Build worker/images/jpeg/transcoder.wasm from the sources of libjpeg-turbo:
#
#     pip install ziglang==0.17.1
#     tools/jpeg_blocks/build.sh libjpeg-turbo-3.1.3
#
# The second command gets the folder of the unpacked sources. `worker/images/jpeg/transcoder.NOTICE.txt`
# has the digest of their archive.
set -eu
sources="$1/src"
here=$(dirname "$0")
files=
for name in jchuff jcomapi jdapimin jdcoefct jdhuff jdinput jdmarker jdphuff jdtrans jmemmgr jutils; do
    files="$files $sources/$name.c"
done
# The first two definitions choose a bit buffer of 64 bits, the third the instruction that counts leading zeros.
python -m ziglang cc -target wasm32-wasi -mexec-model=reactor -O3 -g0 -s \
    -D__x86_64__ -D__ILP32__ -D__arm__ -DNO_GETENV -DNDEBUG -I"$here" -I"$sources" \
    -ffunction-sections -fdata-sections -Wl,--gc-sections \
    "$here/jpeg_blocks.c" $files -o "$here/../../worker/images/jpeg/transcoder.wasm"
