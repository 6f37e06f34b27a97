#!/usr/bin/env bash
# The tests: bash tests/run.sh [--all] [flags of pytest]
# Makes .venv once, then ruff, mypy and the fast tests; --all adds the slow ones.
source "$(dirname "${BASH_SOURCE[0]}")/../launch/setup.sh"
install requirements.txt tests/requirements.txt
which=("-m" "not slow")
if [ "${1:-}" = --all ]; then which=("-m" "slow or not slow"); shift; fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two processes, each file in one of them: most of the time goes into compiling.
exec .venv/bin/python -m pytest -n 2 --dist=loadfile "${which[@]}" "$@"
