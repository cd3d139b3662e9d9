// HTTP and WebSocket on one port: `ws` hangs on the HTTP server, which listens on what portpool hands over.
//
//   npm ci --prefix examples/node
//   portpool exec conversational -- node examples/node/websocket.mjs
//   curl http://localhost:7000/            and an echo at ws://localhost:7000/ws

import { createServer } from 'node:http';
import { WebSocketServer } from 'ws';

const FIRST_FD = 3;
const GOING_AWAY = 1001;
const { LISTEN_FDS, LISTEN_PID } = process.env;
const count = LISTEN_PID && Number(LISTEN_PID) !== process.pid ? 0 : Number(LISTEN_FDS ?? 0);
if (!(count > 0)) {
  console.error('websocket.mjs: no listener in LISTEN_FDS: run it under `portpool exec POOL --`');
  process.exit(1);
}

const sockets = new WebSocketServer({ noServer: true, maxPayload: 64 * 1024 });
sockets.on('connection', (socket) => {
  socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
  socket.on('error', (error) => console.error(`websocket.mjs: ${error.message}`));
});

function answer(request, response) {
  const body = { service: 'websocket.mjs', port: request.socket.localPort, pid: process.pid, sockets: sockets.clients.size };
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}

function upgrade(request, socket, head) {
  if (request.url !== '/ws') {
    socket.end('HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
    return;
  }
  sockets.handleUpgrade(request, socket, head, (client) => sockets.emit('connection', client, request));
}

const servers = Array.from({ length: count }, (_, index) => {
  const server = createServer(answer).on('upgrade', upgrade);
  server.on('error', (error) => {
    console.error(`websocket.mjs: ${error.message}`);
    process.exit(1);
  });
  return server.listen({ fd: FIRST_FD + index });
});

process.once('SIGTERM', () => {
  for (const client of sockets.clients) client.close(GOING_AWAY, 'stopping');
  Promise.all(servers.map((server) => new Promise((closed) => server.close(closed)))).then(() => process.exit(0));
  // Requests in flight, and clients that do not close, have a second.
  setTimeout(() => process.exit(0), 1000);
});
