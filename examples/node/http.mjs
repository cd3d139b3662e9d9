// HTTP on the listeners portpool hands over: `listen({ fd })` in place of `listen(port)`, and nothing else changes.
//
//   portpool exec api-server -- node examples/node/http.mjs
//   curl http://localhost:9000/

import { createServer } from 'node:http';

const FIRST_FD = 3;
const { LISTEN_FDS, LISTEN_PID, PORTPOOL_INSTANCE } = process.env;
const count = LISTEN_PID && Number(LISTEN_PID) !== process.pid ? 0 : Number(LISTEN_FDS ?? 0);
if (!(count > 0)) {
  console.error('http.mjs: no listener in LISTEN_FDS: run it under `portpool exec POOL --`');
  process.exit(1);
}

function answer(request, response) {
  const body = JSON.stringify({
    service: 'http.mjs',
    port: request.socket.localPort,
    pid: process.pid,
    instance: PORTPOOL_INSTANCE ? Number(PORTPOOL_INSTANCE) : null,
  });
  response.writeHead(200, { 'content-type': 'application/json' }).end(body);
}

const servers = Array.from({ length: count }, (_, index) => {
  const server = createServer(answer);
  server.on('error', (error) => {
    console.error(`http.mjs: ${error.message}`);
    process.exit(1);
  });
  return server.listen({ fd: FIRST_FD + index });
});

process.once('SIGTERM', () => {
  // A closed server cannot listen({ fd }) again: the next life is a process of its own.
  Promise.all(servers.map((server) => new Promise((closed) => server.close(closed)))).then(() => process.exit(0));
  // Requests in flight have a second.
  setTimeout(() => process.exit(0), 1000);
});
