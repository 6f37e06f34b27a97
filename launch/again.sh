#!/usr/bin/env bash
# Runs a command again as long as it ends in a way that may be continued:
#   bash launch/again.sh python -m lm.main --config=... --workdir=...
# 8 another process lost, 75 stopped and saved, 137 killed. At most $LM_RETRIES times (20).
for ((trial = 0; ; trial++)); do
  code=0
  "$@" || code=$?
  case $code in 8 | 75 | 137) ;; *) exit "$code" ;; esac
  [ "$trial" -lt "${LM_RETRIES:-20}" ] || exit "$code"
  echo "exit code $code: again in ${LM_RETRY_SECONDS:-10} s" >&2
  sleep "${LM_RETRY_SECONDS:-10}"
done
