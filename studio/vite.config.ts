import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

const server = process.env.CUTAWAY_URL ?? "http://127.0.0.1:8000";

export default defineConfig({
  base: "./",
  plugins: [svelte()],
  build: {
    outDir: "../src/cutaway/studio/static",
    emptyOutDir: true,
    target: "es2022",
    // The first versions with light-dark(), on which both themes rest.
    cssTarget: ["chrome123", "firefox120", "safari17.5"],
  },
  // The server refuses requests that come from another page than its own.
  server: { proxy: { "/studio/api": { target: server, changeOrigin: true, headers: { origin: server } } } },
});
