# Sourced by launch/local.sh and tests/run.sh: `.venv` with the given requirements.
# $PYTHON chooses the interpreter; $REQUIREMENTS adds a file (GPU, TPU); LOCKED=1 takes
# the exact versions of launch/requirements.lock, by their hashes (CPU, and the tests).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local name
  for name in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
    [ -n "$name" ] && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
      2>/dev/null && { echo "$name"; return; }
    if [ -n "$name" ] && [ "$name" = "${PYTHON:-}" ]; then break; fi
  done
  echo "error[config] \$PYTHON: found ${PYTHON:-no suitable python on the PATH}, expected Python 3.11, 3.12 or 3.13." \
    "Fix: install one, or name it: PYTHON=/path/to/python3.12" >&2
  return 2
}

# install FILE...: makes .venv if there is none and installs the files once; a changed
# file, or another Python, installs again.
install() {
  local python stamp wanted file arguments=()
  if [ -n "${LOCKED:-}" ]; then
    set -- launch/requirements.lock
    arguments=(--require-hashes)
  fi
  python=$(find_python) || exit 2
  wanted=$("$python" -c 'import sys; print(sys.version)'; cat "$@")
  stamp=.venv/installed-$(printf '%s' "$*" | tr -c 'a-zA-Z0-9' '-')
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
  if [ -d .venv ] && [ "$(.venv/bin/python -c 'import sys; print(sys.version)' 2>/dev/null)" \
      != "$("$python" -c 'import sys; print(sys.version)')" ]; then rm -rf .venv; fi
  [ -d .venv ] || { echo "making .venv with $("$python" --version)"; "$python" -m venv .venv; }
  echo "installing $* (once)"
  for file in "$@"; do arguments+=(-r "$file"); done
  .venv/bin/python -m pip install -q --disable-pip-version-check "${arguments[@]}"
  printf '%s' "$wanted" > "$stamp"
}
