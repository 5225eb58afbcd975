// Opens a page in headless Chromium, waits until its HTML has what is wanted, prints its HTML, takes a picture. Speaks the DevTools protocol over
// Node's own WebSocket: nothing has to be installed but the browser.
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";

const [url, scheme, wanted, seconds, profile, picture] = process.argv.slice(2);
const browser = spawn("chromium", [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--remote-debugging-port=0", `--user-data-dir=${profile}`,
  "--window-size=1280,800", "about:blank",
], { stdio: ["ignore", "ignore", "pipe"] });
const fail = why => { console.error(why); browser.kill(); process.exit(1); };
setTimeout(() => fail("the browser did not come to an end"), (Number(seconds) + 40) * 1000).unref();
browser.on("error", error => fail(`chromium: ${error.message}`));

const address = await new Promise(resolve => {
  let said = "";
  browser.stderr.on("data", data => {
    said += data;
    const found = said.match(/DevTools listening on ws:\/\/([^/]+)\//);
    if (found) resolve(found[1]);
  });
});
const pages = await (await fetch(`http://${address}/json/list`)).json();
const socket = new WebSocket(pages.find(page => page.type === "page").webSocketDebuggerUrl);
await new Promise(resolve => socket.addEventListener("open", resolve));
let last = 0;
const answers = new Map(), troubles = [];
socket.addEventListener("message", event => {
  const message = JSON.parse(event.data);
  if (message.id) answers.get(message.id)(message.result ?? message);
  if (message.method === "Runtime.exceptionThrown") troubles.push(message.params.exceptionDetails.exception?.description);
  if (message.method === "Log.entryAdded" && message.params.entry.level === "error") troubles.push(message.params.entry.text);
});
const ask = (method, params = {}) => new Promise(resolve => {
  answers.set(++last, resolve);
  socket.send(JSON.stringify({ id: last, method, params }));
});
for (const domain of ["Page", "Runtime", "Log"]) await ask(`${domain}.enable`);
await ask("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
await ask("Page.navigate", { url });
let html;
for (const end = Date.now() + Number(seconds) * 1000; ;) {
  html = await ask("Runtime.evaluate", { expression: "document.documentElement.outerHTML" });
  if (new RegExp(wanted).test(html.result.value) || Date.now() > end) break;
  await new Promise(resolve => setTimeout(resolve, 100));
}
const shot = await ask("Page.captureScreenshot", { format: "png" });
writeFileSync(picture, Buffer.from(shot.data, "base64"));
if (troubles.length) fail(`the page had errors: ${troubles.join("; ")}`);
console.log(html.result.value);
browser.kill();
process.exit(0);
