"""A page as a browser reads it, and a text that would do harm in one that does not escape it."""

from html.parser import HTMLParser

NASTY = '<script>alert("x")</script> & "two"'


class Page(HTMLParser):
    """What a browser would make of a page: its texts, its pictures, and the tags that are open at its end."""

    VOID = {"meta", "link", "img", "input", "br", "line", "circle", "polyline"}

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.open, self.sources = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)
