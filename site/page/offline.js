// Keeps every file of the page after its first visit, so that the page then works without network. The book is not kept:
// its pages are read from the network, so that they are never older than the page's version.
// The build writes a hash of all files in the place of the version below: another build starts another cache.

const CACHE = "pros-page-VERSION", BOOK = new URL("book/", self.location).href;

self.addEventListener("activate", (event) => event.waitUntil((async () => {
  for (const key of await caches.keys()) if (key.startsWith("pros-page-") && key !== CACHE) await caches.delete(key);
  await self.clients.claim();
})()));

async function answer(request) {
  const cache = await caches.open(CACHE), kept = await cache.match(request, { ignoreSearch: true });
  if (kept) return kept;
  const response = await fetch(request);
  if (response.status === 200) cache.put(request, response.clone()).catch(() => {});   // full storage: not kept
  return response;
}

self.addEventListener("fetch", (event) => {
  const { url } = event.request, own = new URL(url).origin === self.location.origin && !url.startsWith(BOOK);
  if (own && event.request.method === "GET") event.respondWith(answer(event.request).catch(() => fetch(event.request)));
});
