# shellcheck shell=bash
# The environment of this checkout: finds Python, makes or reuses .venv, installs pinned packages.
#
# Sourced by quickstart.sh, run_tests.sh and .ci/run. Each requirements file that was installed is
# kept as a copy under .venv/installed/; while the copies equal the files, nothing is installed.

# Threads that wait must not spin: on a machine where anything else runs, spinning makes each step of
# a network wait for a time slice of its slowest thread (measured: up to ten times as long).
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

readonly OLDEST_PYTHON="3.11"
readonly FRESH_INSTALL_KB=3000000 # torch's CPU build and the rest; about 9 GB with a CUDA build
readonly UPDATE_KB=300000

# Print one line on standard error and leave with status 2: the machine or the user can mend this.
stop() {
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
    exit 2
}

# Whether the Python given runs and is new enough.
is_new_enough() {
    "$1" -c "import sys; sys.exit(sys.version_info < (${OLDEST_PYTHON/./, }))" >/dev/null 2>&1
}

# Print the first Python of the PATH that is new enough and can make environments.
find_python() {
    local candidate seen="" without_venv=""
    for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        if ! is_new_enough "$candidate"; then
            seen="$seen${seen:+, }$("$candidate" --version 2>&1 | tail -n 1 || true) ($candidate)"
        elif ! "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            without_venv="$without_venv${without_venv:+, }$candidate"
        else
            command -v "$candidate"
            return
        fi
    done
    if [ -n "$without_venv" ]; then
        stop "$without_venv lacks the venv module; install it (Debian, Ubuntu: apt install python3-venv) and run this again"
    fi
    stop "Python $OLDEST_PYTHON or newer is needed; found ${seen:-none on the PATH}"
}

# Stop if fewer than $2 kB are free where $1 stands.
require_space() {
    local free_kb
    free_kb=$(df -Pk "$1" | awk 'NR == 2 { print $4 }')
    if [ "$free_kb" -lt "$2" ]; then
        stop "the disk is too full: $((free_kb / 1000)) MB free under $1, about $(($2 / 1000)) MB needed to install"
    fi
}

# Turn the error output $1 of a failed installation into one line; $2 says where there is more.
explain_failure() {
    local reason
    case "$1" in
    *"No space left on device"* | *"Errno 28"* | *"Disk quota exceeded"*)
        reason="the disk became full while installing (a CUDA build of torch needs about 9 GB)"
        ;;
    *"Failed to establish a new connection"* | *"NameResolutionError"* | *"name resolution"* | \
        *"Connection refused"* | *"Network is unreachable"* | *"timed out"* | *"ProxyError"* | \
        *"ConnectionError"* | *"ConnectTimeout"* | *"SSLError"* | *"Connection reset"*)
        reason="the network is missing: pip could not reach the package index"
        ;;
    *)
        reason=$(printf '%s\n' "$1" | grep -m 1 '^ERROR' || printf '%s\n' "$1" | tail -n 1)
        reason="the installation failed (${reason:-no reason given})"
        ;;
    esac
    stop "$reason$2"
}

# Make $1/.venv unless a working one stands there.
make_venv() {
    local root=$1 python errors
    if is_new_enough "$root/.venv/bin/python"; then
        "$root/.venv/bin/python" -c 'import pip' >/dev/null 2>&1 ||
            errors=$("$root/.venv/bin/python" -m ensurepip 2>&1) || explain_failure "$errors" ""
        return
    fi
    python=$(find_python) || exit 2
    require_space "$root" "$FRESH_INSTALL_KB"
    echo "Making .venv with $("$python" --version) ..."
    errors=$("$python" -m venv --clear "$root/.venv" 2>&1) || explain_failure "$errors" ""
}

# Whether .venv of $1 holds what the requirements files $2... ask for.
is_installed() {
    local root=$1 file
    shift
    for file in "$@"; do
        cmp -s "$root/$file" "$root/.venv/installed/$file" || return 1
    done
}

# Install the requirements files $2... of $1 with one call of pip, so that one torch is resolved.
install_requirements() {
    local root=$1 log=$1/.venv/pip.log errors file needed_kb=$UPDATE_KB
    shift
    local options=(--log "$log")
    for file in "$@"; do
        rm -f "$root/.venv/installed/$file"
        options+=(-r "$root/$file")
    done
    "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' ||
        needed_kb=$FRESH_INSTALL_KB
    require_space "$root" "$needed_kb"
    echo "Installing $* into .venv ..."
    rm -f "$log"
    [ -t 1 ] || options+=(--quiet)
    # Standard output keeps pip's progress bars; what it complains of is caught for explain_failure.
    if ! { errors=$("$PYTHON" -m pip install "${options[@]}" 2>&1 >&3); } 3>&1; then
        explain_failure "$errors" "; pip's log: $log"
    fi
    rm -f "$log" # it is long, and tells nothing new
    mkdir -p "$root/.venv/installed"
    for file in "$@"; do
        cp "$root/$file" "$root/.venv/installed/$file"
    done
}

# Prepare .venv of the checkout $1 with the requirements files $2...; sets PYTHON to its Python.
prepare_environment() {
    local root=$1
    shift
    make_venv "$root"
    PYTHON=$root/.venv/bin/python
    is_installed "$root" "$@" || install_requirements "$root" "$@"
}
