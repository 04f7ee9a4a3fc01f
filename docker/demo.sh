#!/usr/bin/env bash
# The compose demo from nothing to the table: `make compose-demo`. Everything it makes lies in
# $DEMO (build/compose-demo-TIME); containers, networks and volumes are gone when it ends, also after an
# error or Ctrl-C. Variables of compose.yaml (BASE_IMAGE, TORCH, PIP_OPTIONS) are passed on.
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
  echo "stopping ..."
  "${compose[@]}" logs --no-color >"$DEMO/containers.log" 2>&1 || true
  "${compose[@]}" --profile tools down --volumes --remove-orphans --timeout 10 >/dev/null 2>&1 || status=1
  [ $status -eq 0 ] || echo "error: the demo failed; logs: $DEMO/containers.log" >&2
  exit $status
}

if [ -e "$DEMO" ] && [ -n "$(ls -A "$DEMO")" ]; then
  echo "error: $DEMO is of an earlier demo; remove it, or name another folder: DEMO=... $0" >&2
  exit 1
fi
# The containers run as whoever owns the keys and the results; root gives them to a user of theirs.
RUN_AS=$(id -u):$(id -g)
if [ "$(id -u)" -eq 0 ]; then RUN_AS=49999:49999; fi
export RUN_AS
mkdir -p "$DATA/node-0" "$DATA/node-1" "$DATA/node-2" "$RESULTS"
trap finish EXIT
trap 'exit 130' INT TERM

echo "building the images ..."
if ! "${compose[@]}" build superlink server-app >"$DEMO/build.log" 2>&1; then
  tail -20 "$DEMO/build.log" >&2
  exit 1
fi
echo "making certificates, keys and data ..."
docker run --rm --user "$(id -u):$(id -g)" --volume "$DEMO:/demo" "fedmoe/flower:${FEDMOE_TAG:-latest}" \
  fedmoe certificates /demo/keys --host superlink --nodes 3 >/dev/null
if [ "$(id -u)" -eq 0 ]; then chown -R 49999:49999 "$KEYS" "$DATA" "$RESULTS"; fi
"${compose[@]}" run --rm -T demo-data
echo "starting the SuperLink, registering and starting three nodes ..."
"${compose[@]}" up --detach --no-build 2>"$DEMO/up.log" || { tail -20 "$DEMO/up.log" >&2; exit 1; }
timeout "$LIMIT" "${compose[@]}" run --rm -T cli \
  fedmoe run /app lab -c /demo/demo.toml --output /results --name demo
echo "results on this machine: $RESULTS/demo"
