#!/usr/bin/env bash
# One machine, two commands; each makes .venv at the repository's root first, where it is missing or out of date.
#
#   cluster/local.sh nightly [section.key=value ...]   one night on a Ray of its own, by `ray job submit`
#   cluster/local.sh test [pytest arguments]           ruff, mypy and the test suite
#
# `nightly` works on demo data, or on data.events=... data.items=...; results go to .crossrec unless storage.root=... is
# given. Progress goes to stderr; stdout ends with where the results lie and the job's JSON line. The exit status is the
# job's: 0 done, 1 failed, 2 the user's mistake, 3 published, but somebody should look (`alert` of the JSON line says why).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
head=""   # process id of the Ray head that this script started
submit="" # process id of the running `ray job submit`
address=""

fail() {
    echo "cluster/local.sh: $1" >&2
    exit "${2:-1}"
}

# ---------------------------------------------------------------------------------------------------------- .venv

find_python() {
    local name
    for name in python3.11 python3 python3.12 python3.13 python3.14; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# constraints.txt is the whole closure, so pip installs it as it stands and has nothing to resolve; modules are compiled
# as they are first imported, a fraction of them (measured on 2 cores: 1.5 minutes in place of 3.5). The second pip adds
# crossrec itself, and what only this platform's wheels ask for.
install() {
    local stamp=$venv/.installed want python
    want=$({ echo "$root" && cat "$root/cluster/constraints.txt" "$root/pyproject.toml"; } | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
        echo "installing the pinned requirements into $venv ..." >&2
        if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
            python=$(find_python) || fail "expected Python 3.11 or later with venv on PATH, found none; install python3.11 and python3.11-venv" 2
            "$python" -m venv --clear "$venv"
        fi
        rm -f "$stamp"
        "$venv/bin/python" -m pip install -qq --no-compile --no-deps -r "$root/cluster/constraints.txt" >&2
        "$venv/bin/python" -m pip install -qq --no-build-isolation -c "$root/cluster/constraints.txt" \
            -e "$root[demo,dev,redis,tracking]" >&2
        "$venv/bin/python" -m pip check >&2
        echo "$want" >"$stamp"
    fi
    export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
    # Ray starts dozens of processes: without bytecode each compiles anew all that it imports, 4 s for torch alone.
    unset PYTHONHOME PYTHONDONTWRITEBYTECODE
}

# ------------------------------------------------------------------------------------------------------------ Ray

# A place of our own, so that no Ray on this machine sees another's files, address or token.
isolate() {
    local base=${TMPDIR:-/tmp}
    [ ${#base} -le 30 ] || base=/tmp # Ray's sockets lie below it, and a socket's path has 107 bytes at most
    temp=$(mktemp -d "$base/crossrec.XXXXXX")
    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    unset RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_JOB_HEADERS RAY_AUTH_TOKEN
    # Left unset, Ray turns token authentication on as soon as any local Ray has left a token in the home folder. Set
    # to `token`, because Ray listens on the machine's address even when started for 127.0.0.1.
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$temp/token RAY_TMPDIR=$temp
    (umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$temp/token")
    # Not even a proxy stands between us and this machine.
    export NO_PROXY="127.0.0.1${NO_PROXY:+,$NO_PROXY}" no_proxy="127.0.0.1${no_proxy:+,$no_proxy}"
    # Every process that descends from ours carries this in its environment, and is found by it in the end; SPT_NOENV
    # keeps Ray's workers, which rename themselves, from overwriting it.
    mark=CROSSREC_LOCAL=$temp
}

start_ray() {
    local attempt gcs dashboard client http grpc metrics environments cpus
    cpus=$(getconf _NPROCESSORS_ONLN)
    for attempt in 1 2 3; do # another process may take a port between the choice and its use
        read -r gcs dashboard client http grpc metrics environments < <(python -c '
import socket
held = [socket.create_server(("", 0)) for _ in range(7)]
print(*(server.getsockname()[1] for server in held))')
        address=http://127.0.0.1:$dashboard
        set -m # a process group of its own: Ctrl-C reaches this script alone
        # Every port is named, because the raylet gives an agent 15 seconds to tell one that is not, too few where the
        # machine is busy; the timeouts are raised for the same reason.
        # RAY_API_SERVER_ADDRESS: else Ray's own actors look for the one Ray of the machine, and fail where there are two.
        # No preemption watcher: the one node is not taken away, and that actor takes seconds to start. Ray Train looks at
        # its few workers twice a second: epochs of small data are short.
        # At least 4 logical CPUs: with two, training leaves none to Ray Data, and both wait for ever.
        env "$mark" SPT_NOENV=1 RAY_API_SERVER_ADDRESS="$address" \
            RAY_TRAIN_ENABLE_PREEMPTION_WATCHER=0 RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.5 \
            RAY_DASHBOARD_STARTUP_TIMEOUT_S=300 RAY_gcs_server_port_wait_time_s=120 \
            ray start --head --block --disable-usage-stats --log-color=false --temp-dir="$temp" \
            --node-ip-address=127.0.0.1 --port="$gcs" --ray-client-server-port="$client" \
            --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" \
            --dashboard-agent-listen-port="$http" --dashboard-agent-grpc-port="$grpc" \
            --metrics-export-port="$metrics" --runtime-env-agent-port="$environments" \
            --min-worker-port=0 --max-worker-port=0 \
            --num-cpus=$((cpus > 4 ? cpus : 4)) --object-store-memory=500000000 \
            </dev/null >"$temp/head.log" 2>&1 &
        head=$!
        set +m
        if is_ready; then return; fi
        stop_ray
    done
    tail -n 20 "$temp/head.log" >&2
    fail "Ray did not start; its log is above"
}

# Waits until the node is up (the job server answers earlier) and the job server too; fails if the head ends before.
is_ready() {
    python -c '
import os
import sys
import time
import urllib.request

url, folder, head = sys.argv[1:]
token = open(f"{folder}/token").read()
request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for _ in range(3_000):
    try:
        if "Ray runtime started" in open(f"{folder}/head.log").read():
            opener.open(request, timeout=10).close()
            sys.exit(0)
    except OSError:
        pass
    time.sleep(0.2)
    try:
        os.kill(int(head), 0)
    except ProcessLookupError:
        break
sys.exit(1)' "$address/api/version" "$temp" "$head"
}

marked() {
    grep -lszxF -e "$mark" /proc/[0-9]*/environ | cut -d/ -f3
}

# Kills what carries our mark (elsewhere than on Linux: the head's process group) and waits until it is gone. Nothing
# of a finished or stopped job is left to flush, and a Ray that is asked to end drains for 30 seconds first.
stop_ray() {
    local pids attempt
    for attempt in $(seq 100); do
        pids=$(marked || true)
        if [ -n "$pids" ]; then kill -KILL $pids 2>/dev/null || true; fi
        if [ -n "$head" ] && kill -KILL -- "-$head" 2>/dev/null; then pids="$pids $head"; fi
        [ -n "$pids" ] || break
        sleep 0.1
    done
    head=""
}

finish() {
    local status=$?
    trap - EXIT
    trap : HUP INT TERM
    if [ -n "$submit" ]; then
        echo "stopping the job and its Ray ..." >&2
        ray job stop --address "$address" nightly >/dev/null 2>&1 || true
        kill -KILL -- "-$submit" 2>/dev/null || true
    fi
    stop_ray 2>/dev/null
    rm -rf "$temp"
    exit "$status"
}

# ------------------------------------------------------------------------------------------------------- commands

# A submitted job runs in a folder of its own: relative paths are made absolute here.
absolute() {
    case $1 in
        "" | null | /* | *://*) echo "$1" ;;
        "~/"*) echo "$HOME/${1#"~/"}" ;;
        *) echo "$PWD/$1" ;;
    esac
}

nightly() {
    local config=jobs/configs/demo.yaml storage=storage.root=$root/.crossrec argument value attempt status=0
    local -a keys=()
    for argument in "$@"; do
        value=${argument#*=}
        case $argument in
            data.events=* | data.items=* | data.users=* | data.forget=* | data.relations=* | storage.root=* | \
                score.candidates.allow=* | score.candidates.deny=*) value=$(absolute "$value") ;;
            model.backbone=* | model.image_backbone=*) [ ! -e "$value" ] || value=$(absolute "$value") ;; # else a hub id
            *=*) ;;
            *) fail "argument '$argument': expected section.key=value, found no '='; write it as score.top_k=50" 2 ;;
        esac
        case $argument in
            data.events=*) config=jobs/configs/nightly.yaml ;;
            storage.root=*) storage="" ;;
        esac
        keys+=("${argument%%=*}=$value")
    done
    install
    isolate
    echo "starting Ray ..." >&2
    start_ray
    for attempt in 1 2 3; do # a busy machine's job server may drop a submission
        status=0
        submit_job "$config" ${storage:+"$storage"} ${keys[@]+"${keys[@]}"} || status=$(job_status)
        [ "$status" = missing ] || break
        echo "the job server did not take the job (attempt $attempt of 3)" >&2
    done
    if ! kill -0 "$head" 2>/dev/null; then
        tail -n 20 "$temp/head.log" >&2
        fail "Ray ended before the job did; its log is above"
    fi
    [ "$status" != missing ] || fail "the job could not be submitted; the reason is above"
    [ "$status" -eq 0 ] || [ "$status" -eq 3 ] || exit "$status"
    say_where
    exit "$status"
}

# Submits and follows the job; in the background, so that a signal to this script is not kept waiting.
submit_job() {
    local status=0
    set -m
    (ray job submit --address "$address" --submission-id nightly --log-style=record --log-color=false \
        --working-dir "$root" --runtime-env-json '{"excludes": [".venv", ".git", ".crossrec", "tests", "docs"]}' \
        -- python jobs/nightly.py "$@" 2>&1 | tee "$temp/job.log" | show_progress >&2) </dev/null &
    submit=$!
    set +m
    wait "$submit" || status=$?
    submit=""
    return "$status"
}

# What the job says; not `ray job submit`'s own words, nor the JSON line and the repeated log that come at the end, nor
# that Ray's core remarks on the finite restarts of every actor pool.
show_progress() {
    local line repeated="" own=' (cli|sdk|dashboard_sdk|packaging|working_dir|job_manager)\.py:[0-9]+ -- '
    local remark='^Running entrypoint for job |core_worker\.cc:[0-9]+: Actor with class name: .* max_restarts > 0'
    while IFS= read -r line; do
        case $line in *" -- Status message: Job entrypoint command failed"*) repeated=yes ;; esac
        if [[ -n $repeated || $line == "{"*"}" || $line =~ $own || $line =~ $remark ]]; then continue; fi
        printf '%s\n' "$line"
    done
}

# `ray job submit` says 1 of every failure, and of a connection that it lost while the job goes on. Prints what became of
# the job once it is over, its exit status (0 to 3), or "missing" if the job server never took it.
job_status() {
    python -c '
import sys
import time
from ray.job_submission import JobStatus, JobSubmissionClient

lost = 0
while lost < 30:
    try:
        client = JobSubmissionClient(sys.argv[1])
        job = client.get_job_info("nightly")
        if job.status.is_terminal():
            said = client.get_job_logs("nightly").rstrip()
            with open(sys.argv[2], "r+") as log:
                if said.rpartition("\n")[2] not in log.read():
                    print(said[-2000:], file=sys.stderr)
                log.write(f"\n{said}\n")
            code = job.driver_exit_code
            print(0 if job.status == JobStatus.SUCCEEDED else code if code in (2, 3) else 1)
            sys.exit()
        lost = 0
    except (ConnectionError, OSError):
        lost += 1
    except RuntimeError as error:
        if "status code 404" in str(error):
            print("missing")
            sys.exit()
        lost += 1
    time.sleep(2)
print(1)' "$address" "$temp/job.log" || echo 1
}

say_where() {
    local summary
    summary=$(grep -E '^\{.*\}$' "$temp/job.log" | tail -n 1) || fail "the job ended without its JSON line"
    python -c '
import json, sys
summary = json.loads(sys.argv[1])
print("scores:", summary["scores"], " report:", summary["report"])' "$summary"
    echo "$summary"
}

run_tests() {
    local failed=""
    install
    isolate
    cd "$root"
    export HF_HUB_OFFLINE=1
    ruff format --check . || failed+=" ruff-format"
    ruff check . || failed+=" ruff-check"
    mypy --strict || failed+=" mypy"
    [ -z "$failed" ] || echo "failed before the tests:$failed" >&2
    local status=0
    env "$mark" SPT_NOENV=1 python -m pytest "$@" || status=$?
    [ -z "$failed" ] || exit 1
    exit "$status"
}

case ${1:-} in
    nightly) nightly "${@:2}" ;;
    test) run_tests "${@:2}" ;;
    *) fail "expected 'nightly [section.key=value ...]' or 'test [pytest arguments]', found '${1:-}'" 2 ;;
esac
