#!/usr/bin/env bash
# The main job on this machine: bash launch/local.sh [flags of lm.main]
# Makes .venv once. Without flags: a tiny BERT on the built-in corpus, a few minutes.
# REQUIREMENTS=launch/requirements-gpu.txt (or -tpu) installs for an accelerator.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
install "${REQUIREMENTS:-requirements.txt}"
[ $# -gt 0 ] || set -- --config=configs/bert_tiny.py
exec .venv/bin/python -m lm.main "$@"
