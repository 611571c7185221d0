#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A container's first process in development: runs a command, and starts it anew when its code was changed beneath it.
#
#   reload.sh run COMMAND [ARGUMENT...]   runs it; a command that ends by itself ends the container, as it would without this
#   reload.sh restart                     from outside: end the command and start it again
#
# After a first restart the container stays, whatever the command does: a new one would have the code of the image again.
set -u
pid=${TMPDIR:-/tmp}/reload.pid
again=${TMPDIR:-/tmp}/reload.again
child=

stop() {
    kill -TERM "$child" 2>/dev/null
    wait "$child"
    exit $?
}

run() {
    changed=
    rm -f "$again"
    trap stop TERM INT
    while :; do
        "$@" &
        child=$!
        echo "$child" >"$pid"
        [ ! -e "$again" ] || kill -TERM "$child" # asked for before its number was there
        wait "$child"
        status=$?
        if [ ! -e "$again" ]; then
            [ -n "$changed" ] || exit $status
            echo "reload: $1 ended with status $status; waiting for the next change" >&2
            until [ -e "$again" ]; do sleep 0.2; done
        fi
        rm -f "$again"
        changed=yes
        echo "reload: starting $1 again" >&2
    done
}

restart() {
    old=$(cat "$pid") # before it is asked for: one that starts because of that has the new code
    : >"$again"
    kill -TERM "$old" 2>/dev/null || true # it may be ending already
}

case ${1:-} in
run) shift; run "$@" ;;
restart) restart ;;
*) echo "reload: run COMMAND, or restart" >&2; exit 2 ;;
esac
