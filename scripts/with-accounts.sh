#!/bin/sh
# Runs a command, then removes the accounts that the end-to-end tests have made meanwhile (as root they open sessions as other
# users). They are known by their comment, so that nobody else's account goes. usage: scripts/with-accounts.sh COMMAND [ARG…]
set -u

remove() {
    [ "$(id -u)" = 0 ] || return 0
    for account in $(getent passwd | awk -F: '$5 == "Lockgate tests" { print $1 }'); do
        # A session of theirs may just be ending; the account goes all the same.
        userdel --force --remove "$account" >/dev/null 2>&1 || echo "note: the account $account could not be removed" >&2
    done
}
trap remove EXIT
trap 'exit 130' INT TERM HUP

"$@"
