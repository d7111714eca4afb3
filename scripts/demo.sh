#!/usr/bin/env bash
# A whole cluster in one process, from nothing to a recorded shell and back to nothing; every command is shown first.
#
# Nothing is left behind and nothing of yours is touched: state and client profile live in a temporary directory that goes
# away at the end, also after Ctrl-C. The default ports must be free. Called by `make demo`, which builds the program.
# The password is the demo's own; a person types his.
set -euo pipefail

bin="$(cd "${1:-target/demo}" && pwd)"
export PATH="$bin:$PATH"
me="$(id -un)"
ports=(3023 3025 3080)

bold="" plain=""
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' plain=$'\e[0m'; fi

work="$(mktemp -d -t lockgate-demo.XXXXXX)"
data="$work/data"
export LOCKGATE_HOME="$work/tsh"
server=""

finish() {
    local status=$?
    trap - EXIT INT TERM HUP
    if [ -n "$server" ]; then
        kill -TERM "$server" 2>/dev/null || true
        # A graceful stop takes a moment; one that hangs is not waited for.
        for _ in $(seq 100); do kill -0 "$server" 2>/dev/null || break; sleep 0.1; done
        kill -KILL "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    if [ "$status" != 0 ] && [ "$status" != 130 ] && [ -s "$work/lockgate.log" ]; then
        echo "--- the end of the server's log" >&2
        tail -n 20 "$work/lockgate.log" >&2
    fi
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

say() { printf '\n%s\n' "$*"; }
show() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; }
run() { show "$@"; "$@"; }

# Who listens on a port, as "name (pid N)"; nothing when nobody does.
listener() {
    local hex inode pid
    hex="$(printf '%04X' "$1")"
    inode="$(awk -v port=":$hex\$" '$4 == "0A" && $2 ~ port { print $10; exit }' /proc/net/tcp /proc/net/tcp6 2>/dev/null || true)"
    [ -n "$inode" ] || return 0
    for pid in /proc/[0-9]*; do
        if find "$pid/fd" -lname "socket:\[$inode\]" 2>/dev/null | grep -q .; then
            echo "$(cat "$pid/comm") (pid ${pid#/proc/})"
            return 0
        fi
    done
    echo "a process of another user"
}

# Tries a command until it succeeds and prints what is asked for, for half a minute.
until_prints() {
    local wanted="$1" what="$2" seen=""
    shift 2
    for _ in $(seq 150); do
        if seen="$("$@" 2>&1)" && grep -q -- "$wanted" <<<"$seen"; then return 0; fi
        if ! kill -0 "$server" 2>/dev/null; then break; fi
        sleep 0.2
    done
    printf 'error: %s\n%s\n' "$what" "$seen" >&2
    exit 1
}

for port in "${ports[@]}"; do
    owner="$(listener "$port")"
    if [ -n "$owner" ]; then
        echo "error: port $port is taken by $owner" >&2
        echo "hint: stop it; the demo uses the default ports ${ports[*]}" >&2
        exit 1
    fi
done

say "A cluster in one process: Auth Service, Proxy Service and SSH Service. Its state is in $data."
show "lockgate start --data-dir=$data --nodename=node1 --labels=env=demo &"
lockgate start --data-dir="$data" --nodename=node1 --labels=env=demo >"$work/lockgate.log" 2>&1 &
server=$!
until_prints "sha256:" "the cluster did not start" tctl --data-dir="$data" status
until_prints "node1" "the SSH Service did not join" tctl --data-dir="$data" nodes ls
run tctl --data-dir="$data" status

say "A user, who may log in to hosts as $me."
show "tctl --data-dir=$data users add alice --roles=access --logins=$me"
invitation="$(tctl --data-dir="$data" users add alice --roles=access --logins="$me")"
printf '%s\n' "$invitation"
url="$(grep -oE 'https://[^ ]+/web/invite/[^ ]+' <<<"$invitation" | head -n 1)"
pin="$(tctl --data-dir="$data" status | grep -oE 'sha256:[0-9a-f]+' | head -n 1)"

say "Alice accepts with a password of hers and a second factor, and is logged in. The pin says which cluster this is; later the profile knows."
say "(A person is asked on the terminal and scans a QR code. Here the password comes from a file, and tsh computes the code by itself.)"
(umask 077 && head -c 18 /dev/urandom | base64 >"$work/password")
export LOCKGATE_PASSWORD_FILE="$work/password" LOCKGATE_OTP_SECRET_FILE="$work/otp"
run tsh login --proxy=localhost:3080 --ca-pin="$pin" --invite="$url"
run tsh ls

say "A shell on node1, through the Proxy. Nothing listens there for it: the host dialled out. It is recorded."
show "tsh ssh $me@node1"
expect -f - "$me" <<'EXPECT'
set timeout 20
set login [lindex $argv 0]
proc until {pattern what} {
    expect {
        -re $pattern {}
        timeout { puts stderr "error: $what"; exit 1 }
        eof { puts stderr "error: the session ended early"; exit 1 }
    }
}
spawn -noecho tsh ssh $login@node1
until {[$#%>] ?(\x1b\[[0-9;?]*[a-zA-Z])*$} "no prompt came"
send "echo hello from \$(id -un), pid \$\$\r"
until {hello from [a-z_][a-z0-9_-]*, pid [0-9]+} "the shell did not answer"
send "exit\r"
expect eof
lassign [wait] pid spawned os status
exit $status
EXPECT

say "What was seen, again."
until_prints "node1" "the recording did not arrive" tsh recordings ls
run tsh recordings ls
session="$(tsh recordings ls --format=json | grep -oE '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}' | head -n 1)"
run tsh play "$session"

say "Who is in the cluster, at which version."
run tctl --data-dir="$data" inventory ls

say "That was all. Stopping the cluster and removing $work."
