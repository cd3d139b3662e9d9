// The critical one: what services there are, how they are, what this one has answered.
//   portpool exec api-server -- node api-server.mjs
//
// It asks `portpool port` where the others are, each time anew: a service that restarted may have another port of its
// pool, and a port learned at start would be stale. PORTPOOL_BIN and QWEN_PLAN (see run.sh) say how to ask.

import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { get } from 'node:http';
import { json } from 'node:stream/consumers';
import { promisify } from 'node:util';
import { instance, log, serve, tracingStats } from './service.mjs';

const PEERS = ['mcp-universal', 'ollama-mcp', 'groq-api', 'sandra-ia', 'conversational'];
const TIMEOUT_MS = 1000;
const run = promisify(execFile);

async function portsOf(pool) {
  const { PORTPOOL_BIN = 'portpool', QWEN_PLAN } = process.env;
  const plan = QWEN_PLAN ? ['--config', QWEN_PLAN] : [];
  const args = ['port', ...plan, '--instance', String(instance ?? 1), pool];
  const { stdout } = await run(PORTPOOL_BIN, args, { timeout: TIMEOUT_MS }).catch((error) => {
    // 1 is its word for "nobody is there", which is an answer.
    if (error.code !== 1) log('warn', 'portpool port failed', { pool, error: error.message });
    return { stdout: '' };
  });
  return stdout.split('\n').filter(Boolean).map(Number);
}

async function healthOf(pool) {
  const ports = await portsOf(pool);
  if (ports.length === 0) return { status: 'down', error: 'not running' };
  const started = performance.now();
  try {
    // Not fetch: it refuses the ports on the browsers' block list, and 6000 (X11) is one of them.
    const options = { agent: false, signal: AbortSignal.timeout(TIMEOUT_MS) };
    const [response] = await once(get(`http://localhost:${ports[0]}/api/health`, options), 'response');
    const { status, port, pid } = await json(response);
    return { status, port, pid, latencyMs: Math.round(performance.now() - started) };
  } catch (error) {
    return { status: 'down', port: ports[0], error: error.code ?? error.name };
  }
}

/** Asks about every peer at once, and gives callers within a second one answer: each asking starts five processes. */
function aboutPeers(ask) {
  let last = { at: -Infinity, answer: null };
  return () => {
    if (performance.now() - last.at > 1000) {
      const answer = Promise.all(PEERS.map(async (pool) => [pool, await ask(pool)])).then(Object.fromEntries);
      last = { at: performance.now(), answer };
    }
    return last.answer;
  };
}

const peerPorts = aboutPeers(portsOf);
const peerHealth = aboutPeers(healthOf);

async function services(request) {
  return [200, { instance, services: { 'api-server': [request.socket.localPort], ...(await peerPorts()) } }];
}

async function aggregated() {
  const peers = await peerHealth();
  const status = Object.values(peers).every((peer) => peer.status === 'ok') ? 'ok' : 'degraded';
  return [200, { status, instance, services: peers }];
}

const token = () => [403, { error: 'disabled', message: 'the token endpoint is switched off' }];

serve('api-server', {
  'GET /api/services': services,
  'GET /api/health/aggregated': aggregated,
  'GET /api/tracing/stats': () => [200, { instance, routes: tracingStats() }],
  'GET /api/token': token,
  'POST /api/token': token,
});
