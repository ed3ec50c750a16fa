"""What runs in the device's own shell: POSIX sh, for dash, bash, busybox, Android's mksh and macOS.

Each script gets what varies as arguments, never as text of its own. Paths are absolute and begin
with the workspace's, so that a name can be neither an option nor outside of it.
"""

from __future__ import annotations

from edgekit.bench.runners.quoting import quote

__all__ = ["FACTS", "KILL", "MARKER", "OPEN", "PULL", "PUSH", "REMOVE", "RUN", "SWEEP", "framed"]

MARKER = ".edgekit-workspace"


def framed(script: str) -> str:
    """The script between two lines that carry its first argument and, at the end, its exit status.

    What a login script prints comes before the first, and an exit status counts only if the second
    arrived: a link that broke has none, whatever status ssh or an old adb gives.
    """
    return f"""
frame=$1; shift
printf '\\n%s begin\\n' "$frame"
({script}
)
code=$?
printf '\\n%s end %d\\n' "$frame" "$code"
"""


_STARTED = """
# When a process began, nothing if it is over: with its number this names it even after the number
# was given anew.
started() {
  if [ -r "/proc/$1/stat" ]; then
    line=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    set -- ${line##*") "}
    [ "$1" != Z ] && [ $# -ge 20 ] && shift 19 && echo "$1"
  elif [ ! -d /proc/self ]; then
    ps -o lstart= -p "$1" 2>/dev/null | tr -s ' ' _
  fi
}
"""

_FUNCTIONS = (
    _STARTED
    + """
# The sha256 of what comes in.
digest() {
  if command -v sha256sum >/dev/null; then sha256sum
  elif command -v shasum >/dev/null; then shasum -a 256
  else openssl dgst -sha256 -r
  fi | cut -c 1-64
}
# Runs its arguments in a process group of their own, which can be killed as a whole.
apart() {
  if command -v setsid >/dev/null; then exec setsid "$@"; fi
  if command -v perl >/dev/null; then exec perl -e 'setpgrp(0, 0); exec {$ARGV[0]} @ARGV' "$@"; fi
  exec python3 -c 'import os, sys; os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])' "$@"
}
# Kills a process group, or the process alone before it has made its group.
end_group() { kill "-$1" "-$2" 2>/dev/null || kill "-$1" "$2" 2>/dev/null; }
# Ends every process that a workspace's jobs have on record, if it is still the same one.
end_jobs() {
  for job in "$1"/.edgekit-job-*; do
    [ -f "$job" ] || continue
    while read -r pid start; do
      [ -n "$start" ] && [ "$(started "$pid")" = "$start" ] || continue
      end_group TERM "$pid"
      tries=0
      while [ "$tries" -lt 20 ] && [ "$(started "$pid")" = "$start" ]; do
        tries=$((tries + 1)); sleep 0.1 2>/dev/null || sleep 1
      done
      end_group KILL "$pid"
    done <"$job"
    rm -f -- "$job"
  done
}
# Deletes a directory if it is one that we made: by its name, its kind, and the word in its marker.
delete_workspace() {
  case $1 in
    *..* | *//*) return 65 ;;
    /*/edgekit-??????) ;;
    *) return 65 ;;
  esac
  [ -d "$1" ] && [ ! -L "$1" ] && [ -f "$1/.edgekit-workspace" ] || return 65
  [ "$(cat "$1/.edgekit-workspace")" = "$2" ] || return 65
  rm -rf -- "$1"
}
"""
)

OPEN = (
    _FUNCTIONS
    + """
# $1 where to make it, empty for the usual place; $2 the marker's word; $3 comes back as it is
umask 077
cd -- "${1:-${TMPDIR:-/tmp}}" || exit 66
parent=$(pwd -P)
made=$(mktemp -d "${parent%/}/edgekit-XXXXXX") || exit 67
printf '%s\\n' "$2" >"$made/.edgekit-workspace" || exit 67
printf '%s' "$3" | digest
printf '%s\\n' "$made"
printf '%s' "$3"
"""
)
"""Prints the sha256 of the third argument, the new workspace, and the third argument."""

SWEEP = (
    _FUNCTIONS
    + """
# $1 the workspace in use; $2 the first half of its marker's word
for old in "${1%/*}"/edgekit-??????; do
  [ "$old" != "$1" ] && [ -f "$old/.edgekit-workspace" ] || continue
  word=$(cat "$old/.edgekit-workspace")
  case $word in "$2 "*) end_jobs "$old"; delete_workspace "$old" "$word" ;; esac
done
exit 0
"""
)
"""Deletes what an earlier job of the same holder left when it was killed."""

PUSH = (
    _FUNCTIONS
    + """
# $1 workspace, $2 name, $3 mode; the content comes in
umask 077
case $2 in */*) mkdir -p -- "$1/${2%/*}" || exit 67 ;; esac
cat >"$1/$2" || exit 67
chmod "$3" "$1/$2" || exit 67
digest <"$1/$2"
"""
)

CHECK = (
    _FUNCTIONS
    + """
# $1 workspace, $2 name, $3 mode; the file is there
chmod "$3" "$1/$2" || exit 67
digest <"$1/$2"
"""
)

MKDIR = """
# $1 workspace, $2 a folder in it
umask 077
mkdir -p -- "$1/$2" || exit 67
"""

PULL = (
    _FUNCTIONS
    + """
# $1 workspace, $2 name
[ -f "$1/$2" ] || exit 68
digest <"$1/$2"
cat "$1/$2"
"""
)

# Each process puts itself on record before it begins, so that none is ever without: where there is
# no workspace any more to do it in, it does not begin.
_RECORD = (
    _STARTED
    + """
printf '%s %s\\n' $$ "$(started $$)" >>"$1" || exit 69
shift
"""
)

RUN = (
    _FUNCTIONS
    + f"""
# $1 workspace, $2 the job's number, $3 seconds after which it is killed here even if nobody asks,
# $4... NAME=VALUE..., the program and its arguments
workspace=$1 job=$1/.edgekit-job-$2 limit=$3
shift 3
cd -- "$workspace" || exit 69
exec 3<&0 4>&2 2>/dev/null  # some shells say on stderr how a program ended
apart sh -c {quote(_RECORD + 'exec env "$@"')} sh "$job" "$@" <&3 2>&4 3<&- 4>&- &
pid=$!
apart sh -c {quote(_RECORD + 'sleep "$1"; kill -KILL "-$2"')} sh "$job" "$limit" "$pid" \\
  </dev/null >/dev/null 3<&- 4>&- &
dog=$!
wait "$pid"
code=$?
end_group KILL "$dog"
wait "$dog"
kill -KILL "-$pid"
rm -f -- "$job"
exit "$code"
"""
)

KILL = (
    _FUNCTIONS
    + """
# $1 workspace
end_jobs "$1"
exit 0
"""
)

REMOVE = (
    _FUNCTIONS
    + """
# $1 workspace, $2 its marker's word
end_jobs "$1"
delete_workspace "$1" "$2"
"""
)

FACTS = """
# Lines of NAME=VALUE; what is not there is left out
say() { [ -n "$2" ] && printf '%s=%s\\n' "$1" "$2"; }
say system "$(uname -s)"; say kernel "$(uname -r)"; say machine "$(uname -m)"
for key in ro.product.model ro.product.manufacturer ro.soc.model ro.board.platform \\
  ro.build.version.release ro.build.fingerprint; do
  say "$key" "$(getprop "$key" 2>/dev/null)"
done
for key in machdep.cpu.brand_string hw.ncpu hw.memsize; do
  say "$key" "$(sysctl -n "$key" 2>/dev/null)"
done
say macos "$(sw_vers -productVersion 2>/dev/null)"
say cpu "$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2>/dev/null | head -n 1)"
say board "$(cat /proc/device-tree/model 2>/dev/null)"
say flags "$(sed -n 's/^\\(flags\\|Features\\)[^:]*: *//p' /proc/cpuinfo 2>/dev/null | head -n 1)"
say cores "$(grep -c '^processor' /proc/cpuinfo 2>/dev/null)"
say memory_kib "$(sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo 2>/dev/null)"
say load "$(cut -d ' ' -f 1 /proc/loadavg 2>/dev/null)"
say governor "$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null)"
say distribution "$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release 2>/dev/null)"
exit 0
"""
