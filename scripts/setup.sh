# shellcheck shell=bash
# Sourced by scripts/test and scripts/demo: a virtual environment with p2prw in it, made once and then reused.
#
# set_up dev      everything the tests need          set_up run      what p2prw itself needs
#
# Exit codes: 75 something could not be fetched (the network, not the code), 70 the machine lacks something else.
# Variables: P2PRW_PYTHON (the Python to use), P2PRW_VENV (where the environment goes).

readonly EX_SETUP=70 EX_FETCH=75
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
# nft and ip live there; other users often do not have it in their PATH.
export PATH="$PATH:/usr/sbin:/sbin"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 DEBIAN_FRONTEND=noninteractive

say() { printf '%s\n' "$*" >&2; }

stop() { # CODE MESSAGE...
  local code=$1
  shift
  say "$@"
  exit "$code"
}

show_help() { # SCRIPT: the comment at its head
  sed -n '2,/^set -e/{/^set -e/!s/^# \{0,1\}//p}' "$1"
  exit 0
}

is_root() { [[ $(id -u) -eq 0 ]]; }

# Where things we make go: in the tree where we may write, else in the user's cache (a checkout owned by somebody else).
choose_places() {
  if [[ -w $root && (! -e $root/.venv || -w $root/.venv) && (! -e $root/.cache || -w $root/.cache) ]]; then
    cache=$root/.cache venv=$root/.venv
  else
    local base=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache} key
    key=$(printf %s "$root" | sha256sum | cut -c1-12)
    mkdir -p "$base" 2>/dev/null && [[ -w $base ]] || base=/var/tmp/p2prw-$(id -u)
    cache=$base/p2prw-$key venv=$base/p2prw-$key/venv
  fi
  venv=${P2PRW_VENV:-$venv}
  # In /var/tmp somebody else could have made it first.
  mkdir -p "$cache" 2>/dev/null && [[ -O $cache ]] || stop $EX_SETUP "set-up: cannot make $cache as our own; set XDG_CACHE_HOME to a place that can be written"
}

readonly network_words='could not find a version|no matching distribution|connection|temporary failure|timed out|proxyerror|sslerror|network is unreachable|could not (fetch|resolve|connect)|failed to fetch|unable to (fetch|locate)|http error|max retries|name or service'

# Run quietly; what the network spoilt is tried once more and told from what the machine spoilt.
fetch() { # WHAT COMMAND...
  local what=$1 log=$cache/fetch.log
  shift
  "$@" >"$log" 2>&1 && return
  if grep -qiE "$network_words" "$log"; then
    say "set-up: could not fetch $what, trying once more"
    sleep 2
    "$@" >"$log" 2>&1 && return
  fi
  tail -n 15 "$log" >&2
  if grep -qiE "$network_words" "$log"; then
    stop $EX_FETCH "set-up: could not fetch $what (no test was run); check the network or the package index"
  fi
  stop $EX_SETUP "set-up: installing $what failed (no test was run); the whole output is in $log"
}

apt_lists_are_new=false
apt_install() { # PACKAGE...: 1 when that is not possible here
  is_root && command -v apt-get >/dev/null || return 1
  local log=$cache/apt.log
  local -a install=(apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=120 "$@")
  say "set-up: apt-get install $*"
  if ! $apt_lists_are_new; then
    "${install[@]}" >"$log" 2>&1 && return
    apt-get update -q -o DPkg::Lock::Timeout=120 >"$log" 2>&1 || true
    apt_lists_are_new=true
  fi
  "${install[@]}" >"$log" 2>&1
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
has_venv() { "$1" -c 'import venv, ensurepip' 2>/dev/null; }

find_python() { # sets $python, one that can make environments where there is one
  local name
  python=
  for name in ${P2PRW_PYTHON:+"$P2PRW_PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
    if ! command -v "$name" >/dev/null || ! new_enough "$name"; then
      continue
    fi
    [[ -n $python ]] || python=$name
    if has_venv "$name"; then
      python=$name
      return
    fi
  done
}

make_venv() {
  if [[ -x $venv/bin/python ]] && new_enough "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    return
  fi
  find_python
  if [[ -z $python ]] || ! has_venv "$python"; then
    if apt_install python3 python3-venv; then
      find_python
    elif [[ -z $python && -s $cache/apt.log ]] && grep -qiE "$network_words" "$cache/apt.log"; then
      tail -n 5 "$cache/apt.log" >&2
      stop $EX_FETCH "set-up: could not fetch python3 (no test was run); check the network or the package mirror"
    fi
  fi
  [[ -n $python ]] || stop $EX_SETUP "set-up: needs Python 3.11 or newer: apt-get install python3 python3-venv"
  say "set-up: $venv with $("$python" --version)"
  if [[ -f $venv/pyvenv.cfg ]]; then
    rm -rf "$venv" # made by an earlier, unfinished run or by a Python that is gone
  fi
  if has_venv "$python"; then
    "$python" -m venv "$venv" || stop $EX_SETUP "set-up: $python -m venv $venv failed"
  elif "$python" -m virtualenv --version >/dev/null 2>&1; then
    "$python" -m virtualenv -q "$venv" || stop $EX_SETUP "set-up: $python -m virtualenv $venv failed"
  elif "$python" -m pip --version >/dev/null 2>&1 && "$python" -m venv --without-pip "$venv"; then
    # No ensurepip, but a pip outside: it can put a pip inside (pip >= 22.3).
    fetch "pip" "$python" -m pip --python "$venv/bin/python" install -q pip
  else
    stop $EX_SETUP "set-up: $python cannot make environments: apt-get install python3-venv (as root), or run this as root"
  fi
}

set_up() { # dev | run
  local wanted=$1 extra='' now
  choose_places
  exec 9>"$cache/setup.lock"
  flock 9 # two runs at once: the second finds the work done
  make_venv
  now=$({ cat "$root/pyproject.toml" "$root/scripts/build_leaf.py" "$root/p2prw/engine/roce/_leaf.c"; "$venv/bin/python" -VV; printf %s "$root"; } | sha256sum)
  # Whoever has what the tests need has what p2prw needs.
  if [[ $now != "$(cat "$venv/.p2prw-dev" 2>/dev/null)" ]]; then
    if [[ $wanted == dev || $now != "$(cat "$venv/.p2prw-run" 2>/dev/null)" ]]; then
      [[ $wanted == dev ]] && extra='[dev]'
      say "set-up: pip install -e '.$extra'"
      fetch "Python packages" "$venv/bin/python" -m pip install -q -e "$root$extra"
      printf %s "$now" >"$venv/.p2prw-$wanted"
    fi
  fi
  flock -u 9
  exec 9>&-
}
