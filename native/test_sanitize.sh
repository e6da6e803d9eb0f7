#!/usr/bin/env bash
# Builds the kernels with the address and undefined behaviour sanitizers and runs their tests:
#     native/test_sanitize.sh PYTHON [pytest arguments]
# PYTHON has the package's dependencies, its test dependencies, scikit-build-core and nanobind.
set -euo pipefail
python=$(realpath --no-symlinks "$1")
shift
cd "$(dirname "$0")/.."
build=build/sanitize
site=$build/site

"$python" -m pip --version > /dev/null
"$python" -c "import cmake, nanobind" 2> /dev/null || "$python" -m pip install --quiet cmake nanobind
"$python" -m cmake -S . -B $build -DHEARTHLM_SANITIZE=ON -DPython_EXECUTABLE="$python" > /dev/null
"$python" -m cmake --build $build --parallel 2
rm -rf $site
mkdir -p $site
cp -r src/hearthlm $site
rm -f $site/hearthlm/kernels/_native*.so
cp $build/_native*.so $site/hearthlm/kernels

# -S keeps an editable installation of the package from coming first. Python itself leaks at exit, on purpose.
packages=$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH="$PWD/$site:$packages" \
  "$python" -S -m pytest -p no:cacheprovider "${@:-tests/test_kernels.py}"
