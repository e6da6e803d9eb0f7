// Answers requests with MediaPipe's tasks-genai, or LiteRT-LM, in one headless Chromium, a fresh page for each.
// A request is a line of JSON on stdin, its reply a line on stdout, in the same order:
//   {"runtime": PACKAGE, "model": FILE, "adapter": FILE or null, "options": {...}, "prompts": [TEXT, ...], "timeoutS": N}
//   {"answers": [{"numTokens": N, "text": TEXT}, ...], "log": [TEXT, ...]}  or  {"error": TEXT, "log": [TEXT, ...]}
import { once } from 'node:events';
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import readline from 'node:readline';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

const FOLDER = path.dirname(fileURLToPath(import.meta.url));
const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm' };
// A load fails so once in a few hundred times, by a race inside of the package.
const RACE = 'Cannot close an errored readable stream';

const PAGES = { '@litert-lm/core': '/litert_lm.html' };
const served = new Map(['/page.html', '/litert_lm.html'].map(name => [name, path.join(FOLDER, name)]));
const server = http.createServer((request, response) => {
  const url = decodeURIComponent(request.url.split('?')[0]);
  const module = url.startsWith('/modules/') && path.join(FOLDER, 'node_modules', path.normalize(url.slice('/modules'.length)));
  const file = served.get(url) ?? module;
  const cached = Boolean(module);
  const size = file && fs.statSync(file, { throwIfNoEntry: false })?.size;
  if (size === undefined || size === false) return response.writeHead(404).end();
  response.writeHead(200, { 'content-type': TYPES[path.extname(file)] ?? 'application/octet-stream', 'content-length': size, 'cache-control': cached ? 'max-age=3600' : 'no-store' });
  fs.createReadStream(file).pipe(response);
});
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const origin = `http://127.0.0.1:${server.address().port}`;

const browser = await chromium.launch({
  executablePath: process.argv[2],
  args: ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--enable-unsafe-webgpu'],
});

const context = await browser.newContext(); // one for all, that compiled code is kept

async function answer({ model, adapter, timeoutS, ...request }) {
  served.set('/model', model);
  served.set('/adapter', adapter);
  const page = await context.newPage();
  const log = [];
  page.on('pageerror', error => log.push(String(error)));
  page.on('console', message => log.push(message.text()));
  let timer;
  try {
    await page.goto(origin + (PAGES[request.runtime] ?? '/page.html'));
    await page.waitForFunction('window.answer');
    // What the runtime cannot read makes it wait for ever.
    const late = new Promise(resolve => { timer = setTimeout(resolve, 1000 * timeoutS, { error: `no answer within ${timeoutS} s` }); });
    const asked = page.evaluate(r => window.answer(r), { ...request, model: '/model', adapter: adapter && '/adapter' });
    const reply = await Promise.race([asked, late]);
    asked.catch(() => {}); // rejected when the page is closed
    return { ...reply, log };
  } finally {
    clearTimeout(timer);
    await page.close();
  }
}

console.log(JSON.stringify({ browser: browser.version() }));
for await (const line of readline.createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  let reply = await answer(request);
  if (JSON.stringify(reply).includes(RACE)) reply = await answer(request);
  console.log(JSON.stringify(reply));
}
await browser.close();
server.close();
