// The search of the built site where its pages are opened as files, without a network.
//
// The theme searches in a worker, which browsers refuse to start from a file. It would fetch a
// stand-in from a host; this is one that is here: the worker's script runs in a hidden frame of the
// same origin, and messages go to and fro as events. docs/hooks.py puts it in the other's place.
class FrameWorker extends EventTarget {
  constructor(url) {
    super();
    this.waiting = [];
    this.frame = document.createElement("iframe");
    this.frame.hidden = true;
    document.body.appendChild(this.frame);
    const inside = this.frame.contentWindow;
    inside.answer = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
    inside.ready = () => {
      const waiting = this.waiting;
      this.waiting = null;
      waiting.forEach((data) => this.postMessage(data));
    };
    const page = this.frame.contentDocument;
    page.open();
    page.write(
      "<body><script>" +
        "const answer = window.answer;" +
        "window.postMessage = (data) => answer(data);" +
        "window.importScripts = (...urls) => urls.reduce((done, url) => done.then(() =>" +
        " new Promise((go) => { const s = document.createElement('script'); s.src = url;" +
        " s.onload = go; document.body.appendChild(s); })), Promise.resolve());" +
        `<\/script><script src="${url}" onload="ready()"><\/script></body>`
    );
    page.close();
  }

  set onmessage(listener) {
    this.addEventListener("message", listener);
  }

  postMessage(data) {
    if (this.waiting) this.waiting.push(data);
    else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
  }

  terminate() {
    this.frame.remove();
  }
}

if (location.protocol === "file:") window.Worker = FrameWorker;
