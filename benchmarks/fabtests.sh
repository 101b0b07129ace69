#!/usr/bin/env bash
# Build fabtests' fi_rma_bw, which Debian has no package of: benchmarks/fabtests.sh SOURCE OUT
# SOURCE is the folder fabtests of libfabric's sources, OUT the program to make. Needs gcc and libfabric-dev.
set -euo pipefail
source=${1:?fabtests folder of the libfabric sources} out=${2:?program to make}
config=$(mktemp -d)
trap 'rm -rf "$config"' EXIT
echo '#define PACKAGE_VERSION "by hand"' >"$config/config.h"
# Its configure only looks for optional GPU libraries; without it there are none, as wanted here.
common=()
for file in "$source"/common/*.c; do
  [[ $file == */check_hmem.c ]] || common+=("$file")
done
gcc -O2 -DHAVE_CONFIG_H -D_GNU_SOURCE -I"$config" -I"$source/include" -I"$source" -o "$out" \
  "$source/benchmarks/rma_bw.c" "$source/benchmarks/benchmark_shared.c" "${common[@]}" -lfabric -lpthread -ldl
