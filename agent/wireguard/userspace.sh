#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs wireguard-go for an agent whose kernel has no WireGuard, in a container of its own beside the agent's.
#
# The agent asks by writing a line with the interface's name into the FIFO. It is open only while this script waits, so
# that a request is never kept for later: who asks while nobody waits gets an error (ENXIO) at once.
set -u
umask 077
fifo=${WIREKUBE_RUN_DIR:-/run/wirekube}/userspace
child=
stop() {
    [ -z "$child" ] || { kill -TERM "$child"; wait "$child"; } 2>/dev/null
    echo "userspace: stopped"
    exit 0
}
trap stop TERM INT

while :; do
    # Again each time: a clean-up may have removed it.
    mkfifo "$fifo" 2>/dev/null || [ -p "$fifo" ] || { echo "userspace: $fifo cannot be made" >&2; exit 1; }
    echo "userspace: waiting for a request on $fifo"
    { read -r name <"$fifo"; } 2>/dev/null || { sleep 1; continue; }
    case $name in
    '' | [!a-zA-Z]* | *[!a-zA-Z0-9_.-]* | ????????????????*) echo "userspace: no interface name; ignored" >&2; continue ;;
    esac
    echo "userspace: starting $name"
    # The variable keeps wireguard-go from printing its page of advice.
    LOG_LEVEL=error WG_PROCESS_FOREGROUND=1 wireguard-go -f "$name" </dev/null &
    child=$!
    wait "$child"
    echo "userspace: $name ended with status $?"
    child=
done
