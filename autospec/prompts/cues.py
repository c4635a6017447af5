"""The words by which the classifier knows what is asked for: data, in English, Portuguese, Spanish, German, French, Italian,
Japanese and Chinese, with a few of other languages.

Latin letters are written without accents, as `autospec.prompts.reading.fold` leaves them. A word that ends in ``*``
stands for all that begin so. Phrases (with a space in them, or in a script without spaces) are looked for as they stand.

Three strengths: a word of the first settles the matter unless something as strong stands against it; one of the
second speaks for its type; one of the third only tips the scale.
"""

from __future__ import annotations

from typing import Final

from autospec.cells import PromptType

__all__ = ["CODE_MARKS", "CUES", "FIM_MARKS", "GREETINGS", "QUESTION_WORDS", "SOURCE_MARKS", "TOOL_PHRASES", "WEIGHTS"]

WEIGHTS: Final = (4.0, 2.0, 0.8)

# Per type: strong, plain and weak cues.
CUES: Final[dict[PromptType, tuple[str, str, str]]] = {
    PromptType.CODING: (
        """traceback dockerfile regex regexp junit pytest leetcode stacktrace|unit test|regular expression|expression reguliere
        |expresion regular|expressao regular|regularer ausdruck|regularen ausdruck|正規表現|正则|ユニットテスト|单元测试""",
        """python javascript typescript kotlin rust golang java php ruby swift scala haskell perl lua bash powershell sql
        postgres* mysql sqlite html css react vue angular django flask fastapi numpy pandas docker kubernetes terraform
        makefile cmake git github npm cargo async await struct pointer compil* debug* refactor* algorithm* algoritm*
        programmier* programar programa programas program programs programm programma script scripts skript function functions funcao funcoes
        funcion funciones funktion funktionen fonction fonctions funzione funzioni fonctionne code codigo codice quellcode
        bug bugs stack implement* implantar implemente endpoint api http thread threads parser compiler panic panics
        snippet subquery query consulta* abfrage requete backend frontend webserver crud orm cli regexes stdin stdout
        methode metodo classes boolean integer array string segfault
        |standard library|standard input|worker pool|command line|data structure|linked list|compile        |c++|c#|.net|node.js|select *|コード|関数|スクリプト|プログラム|実装|クラス|アルゴリズム|コンポーネント|代码|函数|脚本|程序
        |算法|编程|用go|用python|用java|sql查询|코드|함수|функцию|программу|скрипт""",
        "variable variables method class classe clase klasse component componente error exception server test tests library module package loop type",
    ),
    PromptType.EDITING: (
        """rewrite reword rephrase proofread copyedit refactor rename reescreva reescrever reescribe reescribir corrija corrige
        corriger corrigez korrigier* korrektur* umformulier* uberarbeit* reecris reformul* riscriv* correggi corregg* riformul*
        verbeter herschrijf lektorier* redline
        |fix the grammar|fix the spelling|grammar and spelling|spelling mistakes|leave the rest|keep the rest|everything else
        |keep every|apart from that|as it stands|complete changed|complete file|whole text back|give back the whole|as follows, and output|convert this|convert the
        |turn the|turn this|turn these|nothing else changes|change only|only what is wrong|whole file back|function back|full code again|apply this diff
        |apply the diff|byte for byte|make it more|make this more|make this email|make it shorter|without changing|mantenha o resto
        |andere sonst nichts|sonst nichts|sans changer|senza cambiare|sin cambiar|terceira pessoa|third person|mais formal|mas formal
        |plus formel|piu formale|more formal|more polite|書き直し|書き換え|校正|推敲|修正して|添削|直してください|变量名|润色|改写|修改
        |改成|校对|更正式|变更为|変更して|全体を返""",
        """replace remove correct improve edit polish shorten tighten simplify reformat convert paraphrase amend tidy
        substitua troque melhore encurte simplifique converta passe cambia cambiar mejora mejorar acorta sustituye corrijas
        ersetze ersetzen verbessere kurze kurz* vereinfach* wandle formuliere remplace raccourci* ameliore* simplifie
        convertis sostituisci migliora accorcia semplifica converti trasforma change fix turn insert delete add
        |active voice|passive voice|type hints|docstrings|tone|置き換え|変換|替换|换成|转换""",
        "update cleanup version tidy complete file grammar spelling wording style formatting grammatica ortografia",
    ),
    PromptType.EXTRACTION: (
        """extract extrai* extraia extrae extraer extrahier* extrais extraire estrai estrarre jsonl entities
        |pull out|pull the|as json|in json|als json|em json|en json|con json|con un json|a json|json array|json object|json lines|formato json|format json|as yaml|als yaml|em yaml|en yaml
        |as csv|as a csv|in a csv|format csv|formato csv|key-value|named entit|as a table|ziehe aus|reply with {|respond with {|answer with {|gib sie als|抽出|提取|抽取
        |json形式|json格式|拆分成|表格|fill this in""",
        """classify categorize categorise label tag parse fields keys columns spalten colunas columnas colonnes colonne
        schlussel felder campos champs campi liste relev* identify classifi* klassifizier* tabela tabelle tabla tableau tabella
        sentiment header tsv metadata json csv yaml xml aufzahl* nenne|and nothing else|list all|list every|list each|all dates|all names|todas as pessoas|todos los|tous les
        |tutti i|alle personen|一覧|分類|字段|分类|列出""",
        "markdown names dates prices amounts list lista all every each nombres fechas noms namen nomi nomes|the following text",
    ),
    PromptType.MATH: (
        r"""derivative integral eigenvalue* eigenvector* theorem equation equations polynomial logarithm* probability equacao
        equacoes ecuacion ecuaciones gleichung* equation equazion* derivada derivee derivata ableitung integrale nullstell*
        matrix matriz matrice probabilidade probabilidad probabilite probabilita wahrscheinlichkeit irrational irracional
        recurrence induction quadratic fraction divisib* primes
        |solve for|\frac|\int|\sum|$x|方程|確率|概率|積分|积分|微分|导数|極値|极值|解いて|解方程|証明|证明|因数分解
        |行列式|limite per|limit of""",
        """solve calculate compute calcule calcular calcula calcola calculer berechne berechn* ausrechn* resolva resolver
        resous resoudre resuelve risolvi demontrer montrer beweise demuestra prove dimostra sum product percent percentage interest
        compounded perimeter area volume triangle circle radius dreieck kreis triangulo triangle cuadrado square root roots
        sine cosine vector factorial modulo kilometres kilometers kilometre marbles coins dice interest loan arithmetic geometric kantenlange* oberflache average mean median variance
        |prove that|how many ways|km/h|per hour|em quanto tempo|quanto tempo|求|計算|计算|一共|多少|何個|何人|何円|いくら|面積|面积""",
        "number numbers total cost each twice half digits gesamt summe suma somme somma numero numeros step steps pay",
    ),
    PromptType.REASONING: (
        """riddle puzzle knights knaves syllogism deduc* logically rätsel ratsel acertijo enigma indovinello liar liars
        hypothes* hipotes* ipotes* raisonne* razona* raciocinio ragionamento raciocine
        |explain your reasoning|how you exclude|does it follow|tell the truth|tells the truth|always lie|step by step|paso a paso|passo a passo|schritt fur schritt
        |etape par etape|most likely|mais provavel|mas probable|wahrscheinlichste|which explanation|dit toujours|exactly two
        |only one of them|weigh the options|pros and cons|wage die|think it through|justify your|正直者|嘘つき|推理|説真話|说真话
        |谎|天平|一步一步|論理|逻辑|前提""",
        """logic reasoning reason justify infer argument conclude order taller shorter older younger left right truth lie lies
        likely explanation cause causes causa ursache options decide decides plan trade-off tradeoff strategy constraints
        ordem orden ordre ordine reihenfolge hypothesis diagnos* deduzco deduco excludes exclude abwag* grunde
        schedule scenario moves crosses switch switches lamp
        |who sits|who is the|in what order|which order|which box|how can you tell|how do you find out|findet man heraus|explain how you|理由|順番|原因|推断|谁""",
        "boxes if must cannot then therefore first last facts because both neither none warum perche pourquoi porque",
    ),
    PromptType.QA: (
        """|capital of|who invented|who discovered|stand for|what is the difference|what exactly is|the difference between|qual a diferenca
        |qual e a diferenca|was ist der unterschied|quelle est la difference|qual e la differenza|cual es la diferencia""",
        """explain explains define meaning answer answers briefly exam difference differences unterschied diferenca diferencia differenza bedeutet significa signifie explique explica erklare spiega fact
        |how does|why does|why do|why is|why are|what does|what are|tell me about|how long|how many|how far|とは|何ですか|是什么|什么是|哪国|为什么|区别|違い|説明して|なぜ|どうして|解释|介绍""",
        "difference history country countries river mountain capital city year invented discovered body animal planet",
    ),
    PromptType.RAG: (
        """citing knowledgebase
        |using only|only the source|sources below|context above|given context|retrieved|based on the|based only|according to the
        |com base|con base en|segun el|anhand der|laut protokoll|laut de*|en t'appuyant|selon le|in base al|secondo il testo
        |pieces of context|search results|knowledge base|the passage|the context|following context|following documents
        |from the documents|use the results|given the two|do they agree|根据|根據|基于|をもとに|に基づ|参考资料|资料|資料""",
        """context sources source documents document passage passages excerpt excerpts articles snippets cite quote contexto
        documento documentos auszuge auszug kontext quellen protokoll extraits extrait contexte documents brano fonti
        contesto cita citando zitiere citar manual policy chunk question pregunta pergunta frage domande domanda
        |质问|質問|问题|出处|引用""",
        "answer responda responde antworte beantworte reponds rispondi pasted attached page says unknown texto text",
    ),
    PromptType.SUMMARIZATION: (
        """summarize summarise summary summaries summarizing tldr condense recap takeaways resuma resumir resumo resume
        resumen resumes resumer synthese synthetise zusammenfass* zusammengefasst zusammenfassung riassum* riassunto sintesi sintetizza
        |an abstract|the minutes of|minutes of this|write the minutes|write up the|tl;dr|key points|main points|main takeaways|in a nutshell|wichtigsten punkte|stichpunkt|fasse |points cles|punti chiave
        |puntos clave|pontos principais|要約|まとめて|要点|箇条書き|总结|概括|摘要|概述|归纳|no time to read""",
        "headline bullets bullet digest overview gist outline points puntos pontos punti sentences sätze satze frases",
        "short brief words paragraph article artikel articulo article articolo text meeting thread long",
    ),
    PromptType.TRANSLATION: (
        """translat* traduz* traduc* tradui* traduis tradur* traduci traduttore ubersetz* tolmach* vertaal* przetlum* переведи
        перевод traducao|how do you say|como se diz|como se dice|wie heisst|wie sagt man|comment dit-on|come si dice|version portugaise
        |翻訳|訳して|に訳|翻译|译成|译为|번역""",
        """spanish portuguese german french italian japanese chinese korean ingles inglesa espanhol espanol portugues alemao
        aleman frances francais allemand anglais espagnol portugais italien englisch englische deutsch deutsche franzosisch*
        spanisch* portugiesisch* italienisch* japanisch* chinesisch* inglese spagnolo francese tedesco portoghese
        |into english|to english|in english|英語|日語|日语|英文|中国語|フランス語|ドイツ語|法语|德语|日本語に|中文""",
        "language languages sentence phrase localize localise idioma sprache langue lingua english",
    ),
    PromptType.WRITING: (
        """story poem sonnet limerick haiku novel fable lullaby slogan slogans eulogy screenplay lyrics blog essay poema conto
        historia cuento geschichte gedicht roman conte poeme nouvelle fiaba poesia filastrocca racconto fairytale marchen
        ballad verse speech discurso rede discours discorso einladung convite invitacion invitation invito obituary
        |cover letter|letter to|love letter|carta de|lettre de|carta a|lettera|product description|blog post|best man
        |opening scene|a dialogue|birthday|詩を|小説|物語|手紙を|作文|散文|诗|故事|小说|一封|道歉信|感謝""",
        """write compose draft invent imagine continue writer screenwriter letter email novelist anschreiben brief
        escreva redija crie cria escribe redacta inventa schreibe schreib verfass* ecris redige scrivi componi inventa
        tone paragraphs stanzas strofen estrofes rhym* rimadas creative narrator characters character scene plot
        |書いて|書け|写一|写首|写篇|帮我写""",
        "funny warm romantic short title words post song lied chanson canzone cancion cancao caption tagline",
    ),
    PromptType.CHAT: (
        "",
        """thanks thank obrigad* gracias danke merci grazie haha lol rs hehe bored tired miss lonely joke feel feeling mood
        langweilig aburrid* entediad* entediado triste happy cansad* mude
        |ありがとう|落ち込|谢谢|哈哈|压力|心情|tell me a joke|:)|^^|:d|;)""",
        "i'm i'll my me you your today tonight yesterday weekend friend girlfriend boyfriend cat dog boss love like really",
    ),
    PromptType.AGENTIC: ("", "", ""),
}

# A request that opens with one of these, and asks for nothing else, is talk.
GREETINGS: Final = frozenset(
    """hi hello hey yo heya hiya morning greetings sup oi ola opa bom hola buenas buenos hallo na moin servus gruss
    salut coucou bonjour bonsoir ciao salve buongiorno buonasera guten привет hej""".split()  # noqa: SIM905
) | {"こんにちは", "こんばんは", "おはよう", "やあ", "你好", "您好", "嗨", "早上好", "안녕"}

QUESTION_WORDS: Final = frozenset(
    """what what's whats who who's whose when where why how which is are does do did can could should was were
    qual quais quem quando onde por porque que como quanto quantos quantas cual quien quienes cuando donde cuanto cuantos
    cuantas wer was wann wo warum wie welche welcher welches wieso weshalb ist sind quel quelle quels quelles qui quand ou
    pourquoi comment combien est-ce chi che cosa dove perche quale quali quanti jaka jaki co kto kiedy""".split()  # noqa: SIM905
)

# Pasted sources look like this.
SOURCE_MARKS: Final = (
    "[1]", "(a)", "<document", "<context", "<source", "chunk 1", "source 1", "document 1", "context:", "contexto:",
    "kontext:", "contexte :", "documents :", "documento:", "texto:", "manual:", "extrait a", "article a", "kb-",
    "passage\n", "passage:", "protokoll", "資料1", "資料：", "参考资料", "材料", "### context", "background:", "sources:",
    "search results", "<snippet",
)  # fmt: skip

CODE_MARKS: Final = (
    "def ", "return ", "import ", "function ", "const ", "let ", "var ", "#include", "public ", "class ", "fn ", "=> ",
    "();", "): ", "#!/", "if (", "for (", "select ", "<?php", "func ", "</", "{\n", ";\n",
)  # fmt: skip

# Fill in the middle: Qwen, StarCoder, CodeLlama, DeepSeek, Codestral, Granite.
FIM_MARKS: Final = (
    "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<PRE>",
    "<SUF>", "<MID>", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "[SUFFIX]", "[PREFIX]", "<|fim_begin|>", "<|fim_hole|>",
)  # fmt: skip

# A system prompt, or a raw prompt, that describes tools in words.
TOOL_PHRASES: Final = (
    "tool call", "tool_call", "<tools>", "tool use", "function call", "available actions", "action input", "observation:",
    "following tools", "set of tools", "use these tools", "access to tools", "call a tool", "tools:", "one tool per",
    "one action per", "werkzeug", "herramientas", "ferramentas", "outils disponibles", "strumenti disponibili",
    "execute_command", "function-calling", "available tools", "you can call", "call exactly one", "ツール", "工具",
)  # fmt: skip
