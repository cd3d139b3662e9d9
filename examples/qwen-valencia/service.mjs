// What the six servers share: structured logs, the listeners in LISTEN_FDS, health, tracing, graceful shutdown.
// No port number is written here or in any of them: the pool decides, a server only says where it is.

import { createServer } from 'node:http';

const FIRST_FD = 3;
// Requests in flight have this long after SIGTERM.
const DRAIN_MS = 800;

export const instance = process.env.PORTPOOL_INSTANCE ? Number(process.env.PORTPOOL_INSTANCE) : null;

const traces = new Map();
const servers = [];
let name = 'unnamed';
let stopping = false;

export function log(level, event, fields = {}) {
  const line = { time: new Date().toISOString(), level, service: name, instance, pid: process.pid, event, ...fields };
  process.stderr.write(`${JSON.stringify(line)}\n`);
}

/** Count and latency of each route; the routes are fixed, so this stays as small as it is. */
export function tracingStats() {
  return Object.fromEntries(
    Array.from(traces, ([route, { count, errors, totalMs, maxMs }]) => [
      route,
      { count, errors, meanMs: Number((totalMs / count).toFixed(3)), maxMs: Number(maxMs.toFixed(3)) },
    ]),
  );
}

/**
 * Serves `routes`, a map from 'METHOD /path' to a function that gives [status, body], beside the health that every
 * service has. `onUpgrade` takes WebSocket handshakes; `onStop` is called once, when shutdown begins.
 */
export function serve(service, routes = {}, { onUpgrade, onStop } = {}) {
  name = service;
  const table = new Map(Object.entries({ 'GET /health': health, 'GET /api/health': health, ...routes }));
  const { LISTEN_FDS, LISTEN_PID } = process.env;
  const count = LISTEN_PID && Number(LISTEN_PID) !== process.pid ? 0 : Number(LISTEN_FDS ?? 0);
  if (!(count > 0)) fail(`no listener in LISTEN_FDS: run it under \`portpool exec ${service} --\``);

  for (let fd = FIRST_FD; fd < FIRST_FD + count; fd += 1) {
    const server = createServer((request, response) => answer(table, request, response));
    server.on('error', (error) => {
      // Being out of fds passes; the clients wait in the backlog.
      if (error.code === 'EMFILE' || error.code === 'ENFILE') log('warn', 'accept failed', { error: error.message });
      else fail(error.message);
    });
    // Nobody but stop() closes it, so it was lost, and a port that is lost closes its server.
    server.on('close', () => stopping || fail('the listener was lost'));
    if (onUpgrade) server.on('upgrade', onUpgrade);
    server.listen({ fd }, () => log('info', 'listening', { fd, port: server.address().port }));
    servers.push(server);
  }
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => stop(signal, onStop));
}

function health(request) {
  const { localPort: port } = request.socket;
  return [200, { status: 'ok', service: name, instance, port, pid: process.pid, uptimeSeconds: Math.floor(process.uptime()) }];
}

async function answer(table, request, response) {
  const started = performance.now();
  const wanted = `${request.method} ${request.url.split('?', 1)[0]}`;
  const route = table.has(wanted) ? wanted : 'unknown';
  const handler = table.get(wanted) ?? (() => [404, { error: 'not found' }]);
  let status;
  let body;
  try {
    [status, body] = await handler(request);
  } catch (error) {
    log('error', 'request failed', { route, error: error.message });
    [status, body] = [500, { error: 'internal error' }];
  }
  if (stopping) response.shouldKeepAlive = false;
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  const ms = performance.now() - started;
  const { count, errors, totalMs, maxMs } = traces.get(route) ?? { count: 0, errors: 0, totalMs: 0, maxMs: 0 };
  traces.set(route, { count: count + 1, errors: errors + (status >= 500), totalMs: totalMs + ms, maxMs: Math.max(maxMs, ms) });
}

function stop(signal, onStop) {
  if (stopping) return;
  stopping = true;
  log('info', 'stopping', { signal });
  onStop?.();
  const closed = servers.map((server) => new Promise((resolve) => server.close(resolve)));
  Promise.all(closed).then(() => finish('drained'));
  setTimeout(() => finish('cut off what was left'), DRAIN_MS);
}

function finish(how) {
  log('info', 'stopped', { how });
  process.exit(0);
}

function fail(error) {
  log('error', 'fatal', { error });
  process.exit(1);
}
