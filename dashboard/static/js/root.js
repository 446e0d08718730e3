// The path below which the service is, with a slash at its end: "/", unless a proxy puts it elsewhere.
export const root = new URL("../../", import.meta.url).pathname;
