#!/usr/bin/env bash
# Makes the environment in which benchmarks measure this library beside its peers: bash install_peers.sh FOLDER.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
mkdir -p "$1"
environment=$(cd "$1" && pwd)
python="$environment/bin/python"

"${PYTHON:-python3}" -m venv "$environment"
"$python" -m pip install --quiet --constraint "$root/constraints.txt" torch==2.13.0
"$python" -m pip install --quiet --constraint "$root/constraints.txt" --editable "$root[dev]"
"$python" -m pip install --quiet higher==0.2.1 torchopt==0.7.3 "jax[cpu]==0.10.2"
# With its dependencies torchvision may bring another torch; without its compiled operators it only lacks what these
# registrations are about.
"$python" -m pip install --quiet --no-deps torchvision==0.28.0
packages=$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
: > "$packages/torchvision/_meta_registrations.py"

# curvlinops, an oracle of tests, needs backpack, whose torchvision is the one above: none may bring another torch.
"$python" -m pip install --quiet --no-deps curvlinops-for-pytorch==3.0.1 backpack-for-pytorch==1.7.1 \
  unfoldNd==0.2.3 einops==0.8.2 einconv==0.1.0 linear_operator==0.6 jaxtyping==0.3.11 wadler_lindig==0.1.8
"$python" -m pip install --quiet --constraint "$root/constraints.txt" scipy mpmath tqdm opt_einsum==3.4.0

# learn2learn's sdist ships C files that do not compile with Python 3.11; without them Cython makes new ones.
"$python" -m pip install --quiet "cython<3" "setuptools<81" wheel gym==0.26.2 scipy requests tqdm gsutil
sources="$environment/learn2learn"
rm -rf "$sources" && mkdir "$sources"
"$python" -m pip download --quiet --no-deps --no-build-isolation --no-binary :all: --dest "$sources" learn2learn==0.2.0
tar --extract --gzip --file "$sources/learn2learn-0.2.0.tar.gz" --directory "$sources" --strip-components 1
rm -f "$sources"/learn2learn/data/*.c
(cd "$sources" && "$python" setup.py --quiet build_ext --inplace)
echo "$sources" > "$packages/learn2learn.pth"
