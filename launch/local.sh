#!/usr/bin/env bash
# The main job on this machine: bash launch/local.sh [flags of lm.main]
# Makes .venv once. Without flags: a tiny BERT on the built-in corpus, a few minutes.
# REQUIREMENTS=launch/requirements-gpu.txt (or -tpu) installs for an accelerator.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
install "${REQUIREMENTS:-requirements.txt}"
[ $# -gt 0 ] || set -- --config=configs/bert_tiny.py
# Large pages for large arrays: a CPU run spends a sixth of its time in page faults
# without them (Linux, glibc 2.35 or newer; ignored elsewhere).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
exec .venv/bin/python -m lm.main "$@"
