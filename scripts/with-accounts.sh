#!/bin/sh
# Runs a command as the end-to-end tests and the bench need it. As root they open sessions as root and as other users:
#
# - Root's own start-up files are hidden from it (in a mount namespace). They may do anything, and what they do stands between a test and
#   what it looks at: a version manager's lock that a killed session leaves behind makes each later one wait for a minute.
# - The accounts it made are removed afterwards. They are known by their comment, so that nobody else's account goes.
#
# usage: scripts/with-accounts.sh COMMAND [ARG…]
set -u

FILES=".bashrc .bash_profile .bash_login .bash_logout .profile .zshenv .zprofile .zshrc .zlogin"

if [ "$(id -u)" = 0 ] && [ -z "${LOCKGATE_PLAIN_HOME:-}" ]; then
    LOCKGATE_PLAIN_HOME=1
    export LOCKGATE_PLAIN_HOME
    exec unshare --mount --propagation private "$0" "$@"
fi

remove() {
    [ "$(id -u)" = 0 ] || return 0
    for account in $(getent passwd | awk -F: '$5 == "Lockgate tests" { print $1 }'); do
        # A session of theirs may just be ending; the account goes all the same.
        userdel --force --remove "$account" >/dev/null 2>&1 || echo "note: the account $account could not be removed" >&2
    done
}
trap remove EXIT
trap 'exit 130' INT TERM HUP

if [ "$(id -u)" = 0 ]; then
    home=$(getent passwd root | cut -d: -f6)
    for file in $FILES; do
        if [ -e "$home/$file" ]; then
            mount --bind /dev/null "$home/$file" || exit 1
        fi
    done
fi

"$@"
