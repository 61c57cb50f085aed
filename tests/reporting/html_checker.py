"""Reads a page as strictly as a person would want it written."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link"}


class Checker(HTMLParser):
    """Collects tags, and fails where one is closed that was not opened last."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text, self.urls = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.urls += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)
        self.urls += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
