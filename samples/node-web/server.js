// A small web service in JavaScript: it says which version it is.
//
// `stead deploy ./samples/node-web --app hello` packs it: package.json says how it is started,
// package-lock.json what it needs.

import { createServer } from "node:http";
import ms from "ms";

const version = process.env.VERSION ?? "1";
const port = Number(process.env.PORT ?? 8080);

const pages = {
  "/": () => `hello from ${version}\n`,
  "/version": () => `${version}\n`,
  "/healthz": () => "ok\n",
  "/uptime": () => `${ms(Math.round(process.uptime() * 1000), { long: true })}\n`,
};

const server = createServer(async (request, response) => {
  let received = 0;
  // Always read to its end, so that the connection can be used again.
  for await (const chunk of request) received += chunk.length;
  const path = request.url.split("?")[0];
  const page = path === "/upload" ? () => `${received} bytes\n` : pages[path];
  const body = page ? page() : "no such page\n";
  response.writeHead(page ? 200 : 404, {
    "Content-Type": "text/plain; charset=utf-8",
    "Content-Length": Buffer.byteLength(body),
    "X-Version": version,
  });
  response.end(body);
});

// The gateway keeps connections for reuse: it closes idle ones, not we.
server.keepAliveTimeout = 0;
server.listen(port, "0.0.0.0", () => console.log(`listening on ${port}`));

// Node ignores SIGTERM where it is the first process.
process.on("SIGTERM", () => server.close(() => process.exit(0)));
