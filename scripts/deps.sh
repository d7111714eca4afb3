#!/bin/sh
# Installs the Debian packages named on the command line that are not there yet. Asks dpkg first, so that a machine
# that has them needs neither the network nor root, and pays some milliseconds.
set -eu

missing=""
if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "note: not a Debian system; these must be there: $*" >&2
else
    for package in "$@"; do
        if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
            missing="$missing $package"
        fi
    done
fi

if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif command -v sudo >/dev/null 2>&1; then
        as_root=sudo
    else
        echo "error: these packages are missing:$missing" >&2
        echo "hint: install them as root: apt-get install$missing" >&2
        exit 1
    fi
    echo "installing:$missing"
    $as_root apt-get -qq update
    # The tests start servers of their own; installing a package should not start the system's.
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -y --no-install-recommends install $missing </dev/null
fi

if ! command -v cargo >/dev/null 2>&1; then
    echo "error: cargo is not on the PATH" >&2
    echo "hint: install Rust 1.95 or newer from https://rustup.rs" >&2
    exit 1
fi
