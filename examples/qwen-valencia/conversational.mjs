// Voice calls: HTTP and WebSocket on one port. What a call sends comes back.
//   npm ci && portpool exec conversational -- node conversational.mjs

import { WebSocketServer } from 'ws';
import { log, serve } from './service.mjs';

const GOING_AWAY = 1001;
const MAX_CALLS = 64;

const calls = new WebSocketServer({ noServer: true, maxPayload: 64 * 1024 });

calls.on('connection', (call) => {
  call.on('message', (data, isBinary) => call.send(data, { binary: isBinary }));
  call.on('error', (error) => log('warn', 'call failed', { error: error.message }));
});

function onUpgrade(request, socket, head) {
  const refusal = request.url !== '/ws' ? '404 Not Found' : calls.clients.size >= MAX_CALLS ? '503 Service Unavailable' : null;
  if (refusal) {
    socket.end(`HTTP/1.1 ${refusal}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`);
    return;
  }
  calls.handleUpgrade(request, socket, head, (call) => calls.emit('connection', call, request));
}

function onStop() {
  for (const call of calls.clients) call.close(GOING_AWAY, 'stopping');
}

serve('conversational', { 'GET /api/calls': () => [200, { active: calls.clients.size }] }, { onUpgrade, onStop });
