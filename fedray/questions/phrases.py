"""Patterns of the words and marks by which replies state, deny and suppose an answer, for replies.py."""

from __future__ import annotations

import re

from fedray.data.numbers import NUMBER

_I, _IM = re.IGNORECASE, re.IGNORECASE | re.MULTILINE

# -- what of a reply is read ------------------------------------------------------------------------------------------

_TAG = (
    r"(?:<\|?(?:seed:)?{0}(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad)\|?>|\[{0}think\]"
    r"|◁{0}think▷)"
)
_OPEN, _CLOSE = _TAG.format(""), _TAG.format("/")
THINKING = tuple(
    re.compile(pattern, _I | re.DOTALL)
    for pattern in (
        r"\A.*<\|channel\|>\s*final\s*(?:<\|message\|>)?",
        rf"{_OPEN}.*?{_CLOSE}",
        rf"\A.*{_CLOSE}",
        rf"{_OPEN}.*",
    )
)
NEXT = re.compile(  # another question begins, or another speaker
    r"<\|(?:im_end|im_start|endoftext|eot_id|end|user|return|start_header_id)\|>|<(?:end_of_turn|eos)>|</s>|\[INST\]"
    r"|^[ \t#>*_]*(?:(?:next|new|another) )?(?:question|problem|exercise|q|human|user|instruction|问题|题目|例题|问)"
    r"[ *_]*(?:no\.?|number|#)? *\d*[ *_]*[:：]"
    r"|(?<=\s)(?-i:Q(?:uestion)? *\d* *[:：])"
    r"|^#+ *(?:question|problem|exercise)\b|^Answer th(?:is|e following) (?:multiple|question)",
    _IM,
)
MARKUP = tuple(
    (re.compile(pattern, _I | re.DOTALL), plain)
    for pattern, plain in (
        ("[\u200b-\u200f\u2060\ufeff]", ""),
        (r"~~.{0,400}?~~", ""),  # struck out
        (r"\\(?:text|textbf|textit|texttt|mathrm|mathbf|mathit|mathsf|mbox)\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}", r"\nAnswer: \1\n"),
        (r"<(\w*(?:answer|choice|option|letter)\w*)>(.{0,1000}?)(?:</\1>|\Z)", r"\nAnswer: \2\n"),
        (r"<br\s*/?>", "\n"),
        (r"<(\w+)[^<>]{0,80}>(.{0,1000}?)</\1>", r"\2"),
        (r"\\times|\\cdot", "×"),
        (r"\\div", "÷"),
        (r"\\approx", "≈"),
        (r"\^\s*\{?\s*\\circ\b\s*\}?", "°"),
        (r"\{,\}", ","),
        (r"\\sqrt\s*\{?", "√"),
        (r"\\left|\\right|\\displaystyle|\\[()\[\]!;,]", ""),
        (r"\\[ ~]", " "),
        (r"(?<!\w)(\*{1,3}|_{1,3}|`|\$)([A-Za-z])\1(?!\w)", r"(\2)"),
    )
)
EMPHASIS = re.compile(r"[*`$\\]+|(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])")

# -- how letters are stated -------------------------------------------------------------------------------------------

_NOUN = r"(?:answers?|ans|choice|option|solution|response|selection|letter|conclusion|verdict|pick)"
_ABOUT = r"(?:\s+(?:to|for|of|in|from|among|here|that|which|we|i)\b[^.:;=?!\n]{0,80}?)?"
_IS = (
    r"(?:'s\b|\b(?:is|was|are|becomes|remains|(?:seems?|appears?)(?: to be)?"
    r"|(?:would|should|must|will|has to|can only|could|might|may)(?: have to)? be)\b"
    r"|\.(?=\s*\()|=*[-=]>|[:=→–—-])"
)
_FOREIGN = (
    r"(?<![a-zà-ÿа-я])(?:antwort|antwoord|réponse|respuesta|risposta|resposta|ответ|відповідь|odpověď|odgovor|odpowiedź"
    r"|válasz|jawaban(?:nya)?|jibu|câu trả lời|đáp án|cevap|yanıt|svar(?:et)?|απάντηση|정답|답변?|答え|正解|回答"
    r"|解答|答|उत्तर|উত্তর|الإجابة|الجواب|إجابة|جواب|คำตอบ|సమాధానం|ìdáhùn|idahun)"
)
_FOREIGN_IS = (
    r"(?:\s*(?:ist|lautet|is|est|es|è|é|adalah|ni|là|är|er|to|je|είναι|náà|هي|هو|है|हल|হল|হলো|คือ|은|는|は|correct[ae]|correta"
    r"|finale?|richtige|corretta|الصحيحة|النهائية)(?!(?-i:[a-z])))*\s*[:ঃ–—-]?(?:\s*\b[ao]\s+(?=(?-i:[A-Z])\b))?"
)
_CHOOSE = (
    r"(?:choose|choosing|pick|picking|select|selecting|go(?:ing)?\s+(?:with|for)|opt(?:ing)?\s+for"
    r"|settle\s+(?:on|for)|say|guess|answer|reply|conclude|think|believe|vote\s+for|lean(?:ing)?\s+towards?)"
)
_WOULD = r"(?:\s+(?:would|will|am|now|have to|had to|must|therefore|probably|still))*"
CUES = tuple(  # whether it is certainly an answer that follows, so that it need not end there; what it follows
    (certain, re.compile(pattern, _IM))
    for certain, pattern in (
        (True, rf"\b{_NOUN}(?:\s+{_NOUN})?{_ABOUT}[\"')\]]*\s*{_IS}"),
        (True, rf"\b{_NOUN}\s+(?:that|which|we|i|you)\b[^.:,;=?!\n]{{0,80}}{_IS}"),
        (True, r"^[ #]*(?:(?:the|final|correct|my|best|right|so)\s+)*answer *$"),
        (True, r"\b(?:correct|right|best)\s*(?::|(?:one\s+)?\b(?:is|would be|must be)\b)"),
        (True, rf"{_FOREIGN}{_FOREIGN_IS}"),
        (True, r"答案(?:(?!不|非|并)[^,，。;\nA-Za-z]){0,6}?(?:是|为|选择?|:|(?=[A-Za-z(】\]]))"),
        (True, r"选项(?:应该|应|只能)?(?:是|为|选|:)"),
        (True, r"(?<![不可别勿])(?<!不能)(?<!不应)选(?!项)择?(?:了|的是|答案)?"),
        (True, r"(?:的|项|而)(?:一项|选项)?(?:应该|应当)?(?:是|为)"),
        (False, rf"\b(?:i|we|you should|let'?s)(?:'d|'ll|'m)?{_WOULD}\s+{_CHOOSE}\b(?:\s+that\b)?"),
        (False, r"\b(?:going with|go with|opt for|my (?:guess|pick|vote) is)\b"),
        (False, r"\b(?:it|that|this|which)(?:'s|\s+(?:is|was|(?:must|would|should|has to|can only|will) be))\b"),
        (False, r"\bnot\b[^.!?;\n]{0,60}?\b(?:but|rather|instead)\b(?:\s+(?:rather|instead)\b)?"),
        (False, r"(?:^|(?<=[\s,;.]))(?:so|therefore|thus|hence|consequently|leaving|leaves)\b"),
        (False, r"(?:因此|所以|因而|故|综上|可见|(?<=[,，])\s*(?:应该?)?是)"),
    )
)
SPACE, POINT = re.compile(r"[\s:,]*"), re.compile(r"[).:,\s]*")
FILL = re.compile(  # between a cue and its answer
    r"(?:[\s:,\]】=#–—-]|\b(?:therefore|thus|hence|clearly|indeed|likely|probably|most|definitely|certainly|simply|just"
    r"|actually|obviously|also|still|then|now|again|only|either|both|in fact|of course|by far|option|choice|letter"
    r"|answer|the|number|statement|given by|represented by|labell?ed|best|correct|right|final|one|is|it|it's|that|be"
    r"|must|would|should|with|la|le|el|die|der|das|opción|opção|opzione|lettre|letra|lettera)\b"
    r"|选项|字母|应该是|应是|[是为]){0,20}",
    _I,
)
_OPENS, _CLOSES = r"[\"'“‘«「『(\[{<【《„]{0,4}", r"[)\]}>\"'”’»」』】》“]{0,4}"
_NO_WORD = r"(?![A-Za-z0-9#]|\+(?!\s*[A-Z])|['’][A-Za-z]|\.[A-Za-z]|-[a-z])"
_LABELLED = rf"(?P<open>{_OPENS})(?P<letter>[A-Za-z])(?P<close>{_CLOSES})"
_ONE = rf"(?<![A-Za-z0-9]){_OPENS}[A-Za-z]{_CLOSES}{_NO_WORD}"
LETTER = re.compile(rf"(?<![A-Za-z0-9]){_LABELLED}{_NO_WORD}")
NAMED = re.compile(r"(?:option|choice|answer|letter|选项)\s*\Z", _I)
AND = re.compile(
    r"\s*(?:[/&、;+–—-]|,?\s*\b(?:and/or|and|or|as well as|und|et|oder|ou)\b|,|和|或|与|及|\s(?=(?-i:[A-Z])\b))\s*"
    r"(?:(?:option|choice|also)\s+)?",
    _I,
)
GROUP = re.compile(rf"{_ONE}(?:\s*(?:[/&,、]|,?\s*(?:and|or)\b|和|或)\s*(?:option\s+)?{_ONE})*")
ENDS = re.compile(
    r"\s*(?:\Z|[.!,;:)\]。，、；\n]|(?:because|since|as|due|and|or|but|given|rather|instead)\b|选?项|です|입니다)"
)
GOES_ON = re.compile(
    r"\s+(?:because|since|as|is|was|would|which|due|for|and|or|but|with|given|so|while|though|not|rather|instead)\b"
)
VERB = re.compile(
    r"\s*(?:选?项)?\s*(?:\b(?:is|are|was|were|has|have|does|do|can|cannot|could|would|must|should|may|might|will|seems?"
    r"|looks)\b|[错不正])",
    _I,
)
_SKIP = (  # from a letter to what is said of it
    r"[):,]*(?:\.(?=\s*is\b))?\s*(?:(?!\b(?:is|are|was|were|would|can|cannot|could|does|do|has|not|because|it)\b|n't)"
    r"(?!(?<![A-Za-z0-9])(?-i:[A-Z])(?![A-Za-z0-9]))[^.!?;\n]){0,80}?"
)
_BE = r"\b(?:is|are|was|were|(?:would|must|should|could|may|might|can) be|(?:seems?|appears?|looks?)(?: to be)?)\s+"
_ADVERBS = (
    r"(?:(?:clearly|definitely|indeed|therefore|thus|likely|more|most|obviously|also|probably|our|my|the|that|which|is)"
    r"\s+)*"
)
_GOOD = r"(?:correct|right|best|likely|accurate|appropriate|suitable|valid)"
_CHOICE = r"(?:answer|choice|option|response|solution|one|fit|match|selection|pick)\b(?! of)"
RIGHT = re.compile(
    rf"{_SKIP}{_BE}{_ADVERBS}(?:(?:(?:{_GOOD}|better|final|only)\s+)*{_CHOICE}"
    r"|what i(?:'d| would)? (?:choose|pick|select|go with)\b"
    rf"|(?:{_GOOD}|better)\b(?=\s*(?:\Z|[.,;:!)\n]|(?:here|because|since|as|and|given|in this|for this)\b)))"
    rf"|{_SKIP}(?:\bbest (?:fits|matches|answers|describes|explains)\b"
    r"|\b(?:fits|matches|answers) (?:best|the (?:question|description))\b|\bmakes the most sense\b"
    r"|[:(–—-]\s*correct\b(?=\s*(?:\Z|[.,;:!)\n]|because\b|since\b))|[✅✓✔☑])"
    r"|\s*it is(?=[.!\n]|\Z)"
    r"|\s*(?:选?项)?(?:都|均)?\s*(?:的?(?:说法|表述|描述|答案))?(?:是|为)?(?:最)?(?:正确|对|符合题意|合适|恰当)"
    r"(?:的|答案|选项)?(?=[。.;,，!\s]|\Z)",
    _I,
)
WRONG = re.compile(
    rf"{_SKIP}(?:\b(?:is|are|was|were|can|could|would|do|does|must|should|will|has|have)(?:n't|not|\s+not)\b"
    rf"|{_BE}(?:\w+\s+){{0,2}}?(?:incorrect|wrong|false|ruled out|eliminated|impossible|unlikely|inaccurate|irrelevant"
    r"|invalid|excluded)\b|[:(–—-]\s*(?:incorrect|wrong|false)\b|[❌✗✘])"
    r"|\s*(?:选?项)?[^。;,，\n]{0,12}?(?:错误|不正确|不对|不符|有误|错)",
    _I,
)
DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|except|anything but|unlike|than|rule out|ruling out|eliminate|eliminating|exclude"
    r"|excluding|discard|instead of|cannot be|can't be)|n't|n't be|排除|不是|不选|并非|而非)\s*"
    r"(?:\b(?:be|by|of|in|made|made of|a|an|the|that of|option|choice|answer|letter)\s+)*(?:选项)?\Z",
    _I,
)
SUPPOSED = re.compile(
    r"\b(?:if|suppose|supposing|assum\w+|whether|unless|were|why|how|neither|nor|never|not|incorrect|wrong|false|another"
    r"|other|worst|tempting)\b|n't\b|如果|假如|若",
    _I,
)
CLAUSE = re.compile(r"[.,;:!?。，；！？\n]|\bno doubt\b", _I)
ASKED = re.compile(r"[^.!;,\n]{0,40}\?")
LINE = re.compile(r"^.*\S.*$", re.MULTILINE)
BARE = re.compile(
    r"\W*(?:(?:so|thus|therefore|the|my|final|correct|best)\s+)*(?:(?:answer|option|choice|letter|ans)\b|选项|答案)?"
    rf"[\s:#.-]*{_LABELLED}\s*(?:选?项)?\W*\Z",
    _I,
)
LABEL = re.compile(rf"\W{{0,4}}?{_LABELLED}(?:(?<=[)\]}}>])|\s*[.):,、–—-]|\s+(?=because\b|since\b))\s*\S")
ANSWER = re.compile(r"\s*A:")
INLINE = re.compile(rf"\W*[A-Z](?:[.:]|{_CLOSES[:-5]}).*\s{_OPENS}[A-Z](?:[.:]|{_CLOSES[:-5]})\s*\S")
SENTENCE = re.compile(r"[.!?。！？;；\n]")
_NAMES = "".join(rf"(?<!{name} )" for name in ("vitamin", "hepatitis", "plan", "type", "grade", "class", "group"))
SHORT = re.compile(  # a few words that end in a letter, or begin with one, which stands as \ue000
    rf"\W*(?:[\w']+\W+){{0,4}}?{_NAMES}\ue000\W*|\W*\ue000(?:\W+[\w']+){{0,3}}\W*|[^A-Za-z]{{0,12}}\ue000\W*", _I
)

# -- how numbers are stated -------------------------------------------------------------------------------------------

HASHES = re.compile(rf"####\s*(?P<number>{NUMBER})(?!\.\s*\w)[^\n.]{{0,30}}\.?\s*$", re.MULTILINE)
CORRECTION = re.compile(
    r"\b(?:wait|actually|correction|oops|sorry|mistake|recheck|i (?:forgot|missed|was wrong))\b", _I
)
STARS = re.compile(
    r"\b(?:US|AU|CA|HK|NZ|R)\$|\*{2,}|(?<![\d)\s])\*|\*(?![\s\d(])|[`$\\]+|(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])"
)
ANNOTATION = re.compile(r"<<[^<>]*=[^<>]*>>")  # GSM8K's calculator
NUMBER_CUES = re.compile(
    rf"\b(?:answers?|ans){_ABOUT}[\"')\]]*\s*{_IS}|^[ #]*(?:(?:the|final|correct|my)\s+)*answer *$"
    rf"|{_FOREIGN}{_FOREIGN_IS}|答案\s*(?:应?该?[是为])?\s*[:：]?",
    _IM,
)
NUMBER_FILL = re.compile(
    r"(?:[\s:：=≈~#>\"'“‘(\[{<|*]|\b(?:either|between|approximately|approx\b\.?|about|around|roughly|exactly|only|just"
    r"|therefore|thus|hence|then|simply|clearly|equal to|the|number|value|is|that|it|a total of|total of|still|now|also"
    r"|probably|likely)\b"
    rf"|\bnot\s+{NUMBER}[\s,]*(?:but|rather)\b){{0,20}}",
    _I,
)
_UNDONE = rf"(?:(?:\s+[a-z/]+){{0,2}}?\s*(?:[+*/×÷·x–-]|\b(?:plus|minus|times)\b)\s*[(\[]*{NUMBER}|\^)"
TERM = re.compile(_UNDONE, _I)
EXPRESSION = re.compile(rf"{_UNDONE}|(?:\s+[a-z/]+){{0,2}}?\s*\|?\s*[=≈]|\)?\s*\([^()=\n]*\)\s*=", _I)
NEGATIVE = re.compile(r"(?<![\d)]\s)\b(?:minus|negative)\s+(?=[\d.])", _I)
ALTERNATIVE = re.compile(rf"\s*(?:,?\s*\b(?:or|and|to)\b|[–-]|,(?=[^,\n]*(?:,|\band\b|$))|:)\s*{NUMBER}", _I)
OTHERWISE = re.compile(rf"{NUMBER}\s*,?\s*\b(?:or|and)\s+[a-z]\w*\s*\Z", _I)  # x = 2 or x
EQUALS = re.compile(r"=|≈|\bequals\b|\bis equal to\b", _I)
STOP = re.compile(r"(?<=\S)(?<!\b[a-z])[.!?](?=\s|$)|[。！？\n]")
TIMES = re.compile(r"(?<=\d)\s*[xX]\s*(?=\d)")
LIST = re.compile(r"^ *\d+[.)]\s+(?=\S)", re.MULTILINE)
ASIDE = re.compile(
    r"\b(?:out of|per|every|in|within|for|after|each|over|than|at|on|during|by|from)\s+(?:the\s+|all\s+)?\Z", _I
)
NAME = re.compile(
    r"\b(?:step|question|problem|part|page|example|option|figure|table|no\.|equation|line|case|method)\s*#?\Z", _I
)

# -- how a few words are stated ---------------------------------------------------------------------------------------

SHORT_CUES = re.compile(r"(?:\bthe )?(?:\b(?:correct|right|final|short) )?\banswer(?: is\b\s*[:：]?|\s*[:：])", _I)
