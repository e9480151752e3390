# Sourced by the scripts beside it: changes to the project's root and gives them `venv` and `packages`.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# as_root COMMAND...: runs it as root, or fails where that needs a password.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@" 2>/dev/null; fi
}

# packages NAME...: installs Debian packages; fails, silently, where it cannot.
packages() {
    command -v apt-get >/dev/null || return 1
    as_root true || return 1
    say "Installing $* ..."
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@")
    as_root "${install[@]}" >/dev/null 2>&1 && return
    { as_root apt-get update -qq && as_root "${install[@]}"; } >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    die "MQTTAPI needs Python 3.11 or newer; set PYTHON to one."
}

# venv NAME PIP-ARGUMENTS...: makes .venv and installs into it. Does nothing when NAME was installed before, and neither
# the arguments nor pyproject.toml have changed since.
venv() {
    local name=$1 python wanted stamp
    shift
    stamp=.venv/.installed-$name
    wanted="$* $(cksum pyproject.toml)"
    if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
        python=$(find_python)
        if ! "$python" -c 'import ensurepip' 2>/dev/null; then # Debian keeps it in a package of its own
            packages python3-venv && "$python" -c 'import ensurepip' 2>/dev/null ||
                die "$python cannot make virtual environments: install its venv package (apt-get install python3-venv)."
        fi
        say "Making .venv ..."
        "$python" -m venv --clear .venv
    fi
    say "Installing what scripts/$name needs ..."
    .venv/bin/python -m pip install -q --upgrade 'pip>=25.1' # dependency groups
    .venv/bin/python -m pip install -q "$@"
    printf '%s' "$wanted" >"$stamp"
}
