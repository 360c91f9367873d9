"""Opens a page in headless Chromium, at the widths of a desktop and of a phone, and checks its appearance.

Controls the browser by its DevTools protocol over two pipes: JSON messages, each followed by a zero byte.
"""
import base64
import json
import os
import re
import subprocess
import tempfile

WIDTHS = {"desktop": 1000, "phone": 390}
# Without these flags the browser requests updates and resolves hosts, which the test would count.
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe", "--hide-scrollbars"]
# Every section with its plots, and every text that is clipped or overlaps another.
MEASURE = """(() => {
  const sections = [];
  for (const heading of document.querySelectorAll('h2')) {
    const section = {title: heading.textContent, plots: 0, marks: 0, note: '', words: ''};
    for (let next = heading.nextElementSibling; next && next.tagName !== 'H2'; next = next.nextElementSibling) {
      if (next.matches('p.note')) section.note += next.textContent;
      else if (!next.matches('svg')) section.words += next.textContent;
      const plots = next.matches('svg') ? [next] : [...next.querySelectorAll('svg')];
      section.plots += plots.length;
      for (const plot of plots) section.marks += plot.querySelectorAll('rect, polyline, circle').length;
    }
    sections.push(section);
  }
  const outside = [], overlapping = [];
  let smallest = 1000;
  for (const plot of document.querySelectorAll('svg')) {
    const frame = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
    for (const [, box] of texts) smallest = Math.min(smallest, box.height);
    for (const [text, box] of texts)
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        outside.push(text);
    texts.forEach(([one, a], index) => texts.slice(index + 1).forEach(([other, b]) => {
      const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      // The boxes of adjacent lines touch; letters overlap only if a third of their height does.
      if (width > 1 && height > Math.min(a.height, b.height) / 3) overlapping.push(one + ' | ' + other);
    }));
  }
  const tables = [...document.querySelectorAll('table')].filter(table => table.scrollWidth > table.clientWidth + 1).length;
  return JSON.stringify({sections, outside, overlapping, smallest, tables, html: document.documentElement.outerHTML,
    text: document.body.innerText, title: document.title,
    wide: document.documentElement.scrollWidth, window: document.documentElement.clientWidth,
    height: document.documentElement.scrollHeight});
})()"""
wrong = []


def check(right, claim, found=""):
    print(f"  {'ok   ' if right else 'WRONG'} {claim}{'' if right or not found else f': {found}'}")
    if not right:
        wrong.append(claim)


class Browser:
    """A page of a separate browser process."""

    def __init__(self, chromium, profile):
        (self.read, theirs_out), (theirs_in, self.write) = os.pipe(), os.pipe()
        # The browser reads commands from descriptor 3 and writes responses to descriptor 4.
        command = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "browser", chromium, *FLAGS,
                   f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self.rest, self.events, self.number, self.session = b"", [], 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                return answer["result"]

    def next(self):
        while b"\0" not in self.rest:
            part = os.read(self.read, 1 << 20)
            if not part:
                raise SystemExit("the browser ended")
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(message)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, url):
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.next()

    def value(self, script):
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise SystemExit(f"the test's script failed: {answer['exceptionDetails']}")
        return answer["result"]["value"]

    def screenshot(self, path, width, height):
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(taken["data"]))

    def end(self):
        self.process.kill()
        self.process.wait()


def check_layout(page, name):
    """Checks that plots and descriptions exist, and that no text is clipped, covered, tiny or wider than the window."""
    for section in page["sections"]:
        title = section["title"]
        check(section["marks"] > 0 or not section["plots"], f"{name}: `{title}` has {section['marks']} marks")
        check(section["note"] != "", f"{name}: `{title}` has a description")
    for word in ("NaN", "undefined", "null", "inf"):
        check(not re.search(rf"(?<![\w-]){word}(?!\w)", page["html"]), f"{name}: no {word}")
    check(not page["outside"], f"{name}: no text is outside its plot", page["outside"])
    check(not page["overlapping"], f"{name}: no text overlaps another", page["overlapping"])
    check(page["smallest"] >= 9, f"{name}: no text is smaller than 9 pixels", page["smallest"])
    check(page["tables"] == 0 and page["wide"] <= page["window"], f"{name}: nothing is wider than the window",
          (page["wide"], page["window"]))


def check_events(events, url):
    messages = [event for event in events if event["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown",
                                                             "Log.entryAdded")]
    check(not messages, "the console is silent", messages)
    requested = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    check(set(requested) == {url}, "only the page itself is fetched", requested)


def measure(chromium, path, out):
    """Opens a file, writes a screenshot for each width to the directory `out`, and returns the measured pages by name."""
    url, pages = path.resolve().as_uri(), {}
    # Processes of a browser that has ended may still write to its profile.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(chromium, profile)
        try:
            for name, width in WIDTHS.items():
                browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
                if not pages:
                    browser.open(url)
                pages[name] = json.loads(browser.value(MEASURE))
                browser.screenshot(out / f"{name}.png", width, pages[name]["height"])
            check_events(browser.events, url)
        finally:
            browser.end()
    for name, page in pages.items():
        check_layout(page, name)
    return pages
