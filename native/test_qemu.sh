#!/usr/bin/env bash
# Checks the kernels on CPUs that are not here, in QEMU's emulation of them, and on the one that is:
#     native/test_qemu.sh PYTHON
# PYTHON has the package and its build dependencies. Needs g++, g++-aarch64-linux-gnu and qemu-user, and says so.
set -euo pipefail
python=$(realpath --no-symlinks "$1")
cd "$(dirname "$0")/.."
build=build/qemu
for tool in g++ aarch64-linux-gnu-g++ qemu-aarch64 qemu-x86_64; do
  command -v $tool > /dev/null || {
    echo "test_qemu.sh: $tool is missing; on Debian: apt-get install g++ g++-aarch64-linux-gnu qemu-user" >&2
    exit 1
  }
done
"$python" -c "import cmake" 2> /dev/null || "$python" -m pip install --quiet cmake

mkdir -p $build
HEARTHLM_KERNELS=reference "$python" tests/kernel_cases.py $build/cases.bin
for cpu in aarch64 x86_64; do
  compiler=g++
  [ "$cpu-linux-gnu" = "$(g++ -dumpmachine)" ] || compiler=$cpu-linux-gnu-g++
  "$python" -m cmake -S . -B $build/$cpu -DHEARTHLM_CHECK=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$cpu \
    -DCMAKE_CXX_COMPILER=$compiler > /dev/null
  "$python" -m cmake --build $build/$cpu --parallel 2
done

check() {  # the emulated CPU, and the instruction sets that the kernels must find on it
  local cpu=$1
  shift
  printf '%-20s' "$cpu"
  case $cpu in
    cortex-*|neoverse-*|max) qemu-aarch64 -cpu "$cpu" $build/aarch64/check_kernels $build/cases.bin "$@" ;;
    *)
      qemu-x86_64 -cpu "$cpu" $build/x86_64/check_kernels $build/cases.bin "$@" 2> >(grep -v "TCG doesn't support" >&2)
      ;;
  esac
}
check cortex-a53 neon portable
check neoverse-n1 neon_dotprod neon portable
check max neon_i8mm neon_dotprod neon portable
check Nehalem portable
check Haswell avx2 portable
printf '%-20s' "Nehalem, Python"  # the whole package on a CPU without AVX
got=$(qemu-x86_64 -cpu Nehalem "$python" -c "from hearthlm import kernels; print(kernels.instruction_set)" 2> /dev/null)
[ "$got" = portable ] || { echo "expected the portable kernels, got ${got:-an error}" >&2; exit 1; }
qemu-x86_64 -cpu Nehalem "$python" -m hearthlm run "Tell me a story about a kite." --temperature 0 2> /dev/null
printf '%-20s' "this CPU"
here=$(HEARTHLM_KERNELS= "$python" -c "from hearthlm.kernels import native; print(*native.instruction_sets())")
$build/$(uname -m)/check_kernels $build/cases.bin $here
