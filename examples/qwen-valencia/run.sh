#!/usr/bin/env bash
# Starts, stops and shows the six Qwen-Valencia servers, each a child of its own under `portpool exec`.
#
#   run.sh start|stop|status [INSTANCE...]        INSTANCE is 1 unless given
#
# QWEN_ENV         production (default): without its api-server nothing is left running, and start fails
#                  development: a warning, and the rest goes on
# QWEN_STATE       pid files and logs; default ${XDG_RUNTIME_DIR:-/tmp}/qwen-valencia-UID
# PORTPOOL_SOCKET  the agent to ask; without it, an agent of our own for ../qwen-valencia.toml
# PORTPOOL_BIN     default: portpool
#
# Exit codes: 0 done, or all running; 1 it failed, or not all are running; 64 usage.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
state=${QWEN_STATE:-${XDG_RUNTIME_DIR:-/tmp}/qwen-valencia-$UID}
environment=${QWEN_ENV:-production}
export PORTPOOL_BIN=${PORTPOOL_BIN:-portpool}
services=(mcp-universal ollama-mcp groq-api sandra-ia conversational api-server)
critical=api-server
start_seconds=15
stop_seconds=5
row='%-16s %8s %6s %8s\n'
started=() # What this run has started, as "instance service".

plan=()
if [[ -z ${PORTPOOL_SOCKET:-} ]]; then
    export QWEN_PLAN=$here/../qwen-valencia.toml # The api-server asks the same agent.
    plan=(--config "$QWEN_PLAN")
fi

say() { printf 'run.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
usage() { say "usage: run.sh start|stop|status [INSTANCE...]"; exit 64; }

# Field 22 of /proc/PID/stat, which with the pid names a process for good. Nothing for one that has ended.
start_time() {
    local stat fields
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    read -ra fields <<<"${stat##*) }"
    [[ ${fields[0]} != Z ]] && printf '%s\n' "${fields[19]}"
}

# Prints the pid of what we started as instance $1 of service $2, if it is that process still.
running() {
    local pid since
    { read -r pid since <"$state/$1/$2.pid"; } 2>/dev/null || return 1
    [[ -n $since && $(start_time "$pid") == "$since" ]] && printf '%s\n' "$pid"
}

# Prints the port on which process $3 answers as instance $1 of service $2. The pool may have other holders.
port_of() {
    local port body
    while read -r port; do
        body=$(curl -fsS --noproxy '*' --max-time 1 "http://localhost:$port/api/health" 2>/dev/null) || continue
        if [[ $body =~ \"pid\":$3[,}] ]]; then
            printf '%s\n' "$port"
            return
        fi
    done < <("$PORTPOOL_BIN" port "${plan[@]}" --instance "$1" "$2" 2>/dev/null)
    return 1
}

launch() {
    local instance=$1 service=$2 pid
    # A session of its own, so that the end of this terminal is not the end of it. The lock is not its to keep.
    setsid "$PORTPOOL_BIN" exec "${plan[@]}" --instance "$instance" "$service" -- node "$here/$service.mjs" \
        </dev/null >"$state/$instance/$service.log" 2>&1 {lock}>&- &
    pid=$!
    printf '%s %s\n' "$pid" "$(start_time "$pid" || echo gone)" >"$state/$instance/$service.pid"
    started+=("$instance $service")
}

await_health() {
    local instance=$1 service=$2 deadline=$((SECONDS + start_seconds)) pid port
    while pid=$(running "$instance" "$service"); do
        if port=$(port_of "$instance" "$service" "$pid"); then
            # shellcheck disable=SC2059 # The format is ours, above.
            printf "$row" "$service" "$instance" "$port" "$pid"
            return
        fi
        if ((SECONDS >= deadline)); then
            say "$service/$instance gives no health after $start_seconds s"
            return 1
        fi
        sleep 0.1
    done
    say "$service/$instance ended: $(tail -n 1 "$state/$instance/$service.log")"
    return 1
}

# Ends the given "instance service" pairs: SIGTERM to all, then a bounded wait. Never more than SIGTERM.
stop_all() {
    local pair pid deadline=$((SECONDS + stop_seconds)) failed=0
    for pair in "$@"; do
        if pid=$(running "${pair% *}" "${pair#* }"); then kill -TERM "$pid" 2>/dev/null || true; fi
    done
    for pair in "$@"; do
        while pid=$(running "${pair% *}" "${pair#* }") && ((SECONDS < deadline)); do sleep 0.05; done
        if [[ -n $pid ]]; then
            say "${pair#* }/${pair% *} (pid $pid) does not stop"
            failed=1
        else
            rm -f -- "$state/${pair% *}/${pair#* }.pid"
        fi
    done
    return "$failed"
}

abandon() {
    trap - INT TERM
    stop_all "${started[@]}" || true
    die "$1"
}

start() {
    local instance service
    command -v "$PORTPOOL_BIN" >/dev/null || die "no $PORTPOOL_BIN: install portpool, or set PORTPOOL_BIN"
    [[ -d $here/node_modules/ws ]] || die "the voice server needs ws: npm ci --prefix $here"
    trap 'abandon "interrupted: what was started is stopped"' INT TERM
    # shellcheck disable=SC2059
    printf "$row" SERVICE INSTANCE PORT PID
    for instance in "$@"; do
        mkdir -p -- "$state/$instance"
        for service in "${services[@]}"; do
            running "$instance" "$service" >/dev/null || launch "$instance" "$service"
        done
    done
    for instance in "$@"; do
        for service in "${services[@]}"; do
            if await_health "$instance" "$service"; then continue; fi
            if [[ $service == "$critical" && $environment == production ]]; then
                abandon "FATAL: instance $instance has no $critical: what was started is stopped"
            fi
            say "warning: instance $instance goes on without $service"
        done
    done
}

stop() {
    local instance service pairs=()
    for instance in "$@"; do
        for service in "${services[@]}"; do pairs+=("$instance $service"); done
    done
    stop_all "${pairs[@]}"
}

status() {
    local instance service pid port all=0
    # shellcheck disable=SC2059
    printf "$row" SERVICE INSTANCE PORT PID
    for instance in "$@"; do
        for service in "${services[@]}"; do
            port=-
            if ! pid=$(running "$instance" "$service") || ! port=$(port_of "$instance" "$service" "$pid"); then
                all=1
            fi
            # shellcheck disable=SC2059
            printf "$row" "$service" "$instance" "${port:--}" "${pid:--}"
        done
    done
    return "$all"
}

verb=${1:-}
[[ $verb =~ ^(start|stop|status)$ ]] || usage
shift
(($# > 0)) || set -- 1
for instance in "$@"; do [[ $instance =~ ^[1-9][0-9]*$ ]] || usage; done
[[ $environment =~ ^(production|development)$ ]] || die "QWEN_ENV is production or development"

umask 077
mkdir -p -- "$state"
# /tmp is everybody's: a directory laid there by another could name processes to signal.
[[ -O $state && ! -L $state ]] || die "$state is not ours"
exec {lock}>"$state/lock"
if [[ $verb != status ]]; then flock -w 60 "$lock" || die "another run.sh is at work on $state"; fi
"$verb" "$@"
