#!/usr/bin/env bash
# The compose demo from nothing to the table: `make compose-demo`. Everything it makes lies in
# $DEMO (build/compose-demo-TIME); containers, networks and volumes are gone when it ends, also after an
# error or Ctrl-C. Variables of common.yaml (BASE_IMAGE, TORCH, PIP_OPTIONS) are passed on.
set -euo pipefail
cd "$(dirname "$0")"

DEMO=${DEMO:-$(cd .. && pwd)/build/compose-demo-$(date +%Y%m%d-%H%M%S)}
LIMIT=${LIMIT:-1800}  # seconds for the run itself
export KEYS=$DEMO/keys DATA=$DEMO/data RESULTS=$DEMO/results COMPOSE_PROJECT_NAME=${PROJECT:-fedmoe-demo}

if docker compose version >/dev/null 2>&1; then compose=(docker compose)
elif command -v docker-compose >/dev/null; then compose=(docker-compose)
else echo "error: neither docker compose nor docker-compose is installed" >&2; exit 1; fi

finish() {
  status=$?
  trap - EXIT
  if [ $status -ne 0 ] && [ $started = yes ]; then
    echo "the last lines of each container:"
    "${compose[@]}" logs --no-color --tail 8 || true
  fi >&2
  echo "stopping ..."
  "${compose[@]}" logs --no-color >"$DEMO/containers.log" 2>&1 || true
  "${compose[@]}" --profile tools down --volumes --remove-orphans --timeout 10 >"$DEMO/down.log" 2>&1 ||
    { status=1; step="stopping"; tail -20 "$DEMO/down.log" >&2; }
  [ $status -eq 0 ] || echo "error: the demo failed at: $step (exit code $status); logs: $DEMO/*.log" >&2
  exit $status
}

# do_step TEXT LOG COMMAND...: say what is done and do it; an error shows the end of its log.
do_step() {
  step=$1
  local log=$DEMO/$2 code=0
  shift 2
  echo "$step ..."
  "$@" >"$log" 2>&1 || code=$?
  if [ $code -ne 0 ]; then
    echo "the last lines of $log:" >&2
    tail -20 "$log" >&2
    exit $code
  fi
}

make_keys() {
  docker run --rm --user "$(id -u):$(id -g)" --volume "$DEMO:/demo" "fedmoe/flower:${FEDMOE_TAG:-latest}" \
    fedmoe certificates /demo/keys --host superlink --nodes 3 || return
  if [ "$(id -u)" -eq 0 ]; then chown -R "$RUN_AS" "$KEYS" "$DATA" "$RESULTS"; fi
}

if [ -e "$DEMO" ] && [ -n "$(ls -A "$DEMO")" ]; then
  echo "error: $DEMO is of an earlier demo; remove it, or name another folder: DEMO=... $0" >&2
  exit 1
fi
# The containers run as whoever owns the keys and the results; root gives them to a user of theirs.
RUN_AS=$(id -u):$(id -g)
if [ "$(id -u)" -eq 0 ]; then RUN_AS=49999:49999; fi
export RUN_AS
step=beginning started=no
mkdir -p "$DATA/node-0" "$DATA/node-1" "$DATA/node-2" "$RESULTS"
trap finish EXIT
trap 'exit 130' INT TERM

do_step "building the images" build.log "${compose[@]}" build superlink server-app
do_step "making certificates and keys" keys.log make_keys
do_step "making data" data.log "${compose[@]}" run --rm -T demo-data
started=yes
do_step "starting the SuperLink, registering and starting three nodes" up.log \
  "${compose[@]}" up --detach --no-build
step="running"
timeout "$LIMIT" "${compose[@]}" run --rm -T cli \
  fedmoe run /app lab -c /demo/demo.toml --output /state/results --name demo
echo "results on this machine: $RESULTS/demo"
