"""The words by which the classifier knows what is asked for: data.

In English, Portuguese, Spanish, German, French, Italian, Japanese and Chinese, with a few of other languages.

Cues stand between commas, as `autospec.prompts.request_text.fold` leaves a text: lower case, Latin letters without accents,
apostrophes and hyphens as spaces. A word that ends in ``*`` stands for all that begin so. Latin words and phrases are matched
as whole words; what has other signs in it, or is of a script without spaces, is looked for as it stands.

A *strong* cue settles the matter unless something as strong stands against it; a *plain* one speaks for its type; a
*weak* one only tips the scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from autospec.cells import PromptType

__all__ = [
    "CODE_MARKS",
    "CUES",
    "FIM_MARKS",
    "GREETINGS",
    "NEGATIONS",
    "QUESTION_WORDS",
    "SOURCE_MARKS",
    "TOOL_PHRASES",
    "Cues",
]


@dataclass(frozen=True, slots=True)
class Cues:
    """What speaks for one prompt type, by strength."""

    strong: str = ""
    plain: str = ""
    weak: str = ""


CUES: Final[dict[PromptType, Cues]] = {
    PromptType.CODING: Cues(
        strong="""
        c#, c++, compiler error, dockerfile, expresion regular, expressao regular, expression reguliere,
        golang, haskell, java, javascript, junit, kotlin, leetcode, php, powershell, prueba unitaria,
        pytest, python, regex, regexp, regular expression, regularen ausdruck, regularer ausdruck,
        scala, sql, stack trace, stacktrace, test unitaire, teste unitario, tests unitaires, traceback,
        typescript, unit test, unittest, unittests, 正規表現, 正则, ユニットテスト, 单元测试, 用go, 用python, 用java, 用c,
        pythonで, javaで, goで, rustで
        """,
        plain="""
        .net, abfrage, algorithm*, algoritm*, angular, ansible, api, arduino, array, async, await,
        backend, bash, befehl, big o, boolean, bug, bugs, cargo, classes, cli, cli tool, closure, cmake,
        code, codice, codigo, command line, compil*, compile, compiler, consulta*, container, crud, css,
        cuda, daemon, data structure, deadlock, debian, debug*, decorator, dependencies, deploy,
        deployment, desarrolla, django, docker, endpoint, esp32, fastapi, flask, fonction, fonctionne,
        fonctions, frontend, funcao, funcion, funciones, funcoes, function, functions, funktion,
        funktionen, funzione, funzioni, generator, git, github, graphql, grpc, handler, hashmap, html,
        http, implantar, implement*, implemente, import error, integer, jwt, kafka, kubernetes, linked
        list, linter, linux, lua, makefile, memory leak, methode, metodo, microservice, middleware,
        mysql, nginx, node.js, npm, null, null pointer, numpy, oauth, one liner, opencv, orm, pandas,
        panic, panics, parse the, parser, payload, perl, pointer, postgres*, program, programa,
        programar, programas, programm, programma, programme, programmi, programmier*, programs,
        pytorch, quellcode, query, race condition, raspberry, react, recursion, recursive, redis,
        refactor*, refcount, regexes, renderiza, requete, requisicao, retries, retrying, ruby, rust,
        scraper, script, scripts, segfault, select *, shell script, skript, snippet, sqlalchemy, sqlite,
        ssh, stack, standard input, standard library, status code, stdin, stdout, streams, string,
        struct, subquery, swift, systemd, tailwind, tensorflow, terraform, thread, threads, tuple,
        ubuntu, undefined, upload, uploads, vite, vue, web app, web scraper, webpack, webserver,
        websocket, worker pool, программу, скрипт, функцию, コード, 関数, スクリプト, プログラム, 実装, クラス, アルゴリズム,
        コンポーネント, 代码, 函数, 脚本, 程序, 算法, 编程, sql查询, 코드, 함수, 编写, 爬虫, 接口, 数据库, 报错, エラー, 実装して, データベース, 開発, 客户端,
        标准库, 服务器端, 打包, 路由, 控制台
        """,
        weak="""
        clase, class, classe, component, componente, error, exception, klasse, library, loop, method,
        module, package, server, test, tests, type, variable, variables
        """,
    ),
    PromptType.EDITING: Cues(
        strong="""
        add comments, add error handling, add type hints, and output, andere sonst nichts, apart from
        that, apply the diff, apply this diff, as follows, as it stands, benenne um, byte for byte,
        change nothing else, change only, changes made, complete changed, complete file, convert the,
        convert this, copy edit, copyedit, corregg*, correggi, corrige, corriger, corrigez, corrija,
        everything else, fix the grammar, fix the spelling, fix the typos, full code again, function
        back, give back the whole, grammar and spelling, herschrijf, keep every, keep the doc, keep the
        meaning, keep the rest, keep the structure, korrektur*, korrigier*, lass den rest, leave the
        rest, lektorier*, less formal, mais formal, make it more, make it shorter, make it sound, make
        this email, make this more, mantenha o resto, mas formal, more formal, more polite, nothing else
        changes, nothing else touched, only what is wrong, piu formale, plus formel, proofread, redline,
        reecris, reescreva, reescrever, reescribe, reescribir, refactor, reformul*, rename, renombra,
        renomeie, renommer, rephrase, reword, rewrite, riformul*, rinomina, riscriv*, same code but,
        same function but, sans changer, schreibe um, senza cambiare, sin cambiar, sonst nichts, sound
        more, spelling, spelling mistakes, terceira pessoa, these changes, third person, typos,
        uberarbeit*, umformulier*, umschreiben, verbeter, whole file back, whole text back, without
        changing, 書き直し, 書き換え, 校正, 推敲, 修正して, 添削, 直してください, 变量名, 润色, 改写, 修改, 改成, 校对, 更正式, 变更为, 変更して, 全体を返,
        言い換え, 敬語に, リファクタ, 書き換えて, 重写, 缩短, 纠正, 重构, 错别字, 更简洁, 语病, 改为, 翻案して, 改过来, 其他不要动, 错字
        """,
        plain="""
        accorcia, acorta, active voice, add, adicione, aggiungi, ajoute, altera, altere, ameliore*,
        amend, anpassen, cambia, cambiar, change, check my, clean up, convert, converta, converti,
        convertis, correct, corrijas, deixe, delete, docstrings, edit, edit this, elimina, encurte,
        ersetze, ersetzen, fix, formuliere, hazlo, hoflicher, improve, improve the wording, insert,
        instead of, keep the, kurz*, kurze, kurzer, mach aus, mais curto, make it, make the, mas corto,
        mejora, mejorar, melhore, merge these, mets, migliora, migrate, modifica, modifie, modifier,
        paraphrase, passato prossimo, passe, passive voice, past tense, piu corto, plus court, polish,
        port this, prasens, pule, quita, quitar, raccourci*, reformat, reformula, reformule, remova,
        remove, remplace, remplacer, rendi, rends, reorder, repeticiones, replace, revisa, revise,
        revises, same data, semplifica, shorten, simplifie, simplifique, simplify, sostituisci, split
        this, stilistisch, streiche, substitua, supprime, sustituye, swap, the same data, tidy, tidy up,
        tighten, togli, tone, torne, trasforma, troque, turn the, turn these, turn this, type hints,
        verbessere, verbessern, vereinfach*, wandle, 置き換え, 変換, 替换, 换成, 转换, 短くして, 整えて, 変えて, 精简, 修正, 完善
        """,
        weak="""
        cleanup, complete, file, formatting, grammar, grammatica, ortografia, style, update, version,
        wording
        """,
    ),
    PromptType.EXTRACTION: Cues(
        strong="""
        a json, a table of, a table with, als json, als yaml, answer with {, as a csv, as a table, as
        csv, as json, as yaml, collect all, con json, con un json, dans un tableau, einer tabelle, em
        formato de tabela, em json, em yaml, en json, en una tabla, en yaml, entities, estrai, estrarre,
        extract, extrae, extraer, extrahier*, extrai*, extraia, extraire, extrais, fill in the form,
        fill this in, find all the, format csv, format json, formato csv, formato json, gib sie als,
        identifique, in a csv, in eine tabelle, in json, in una tabella, into a table, json array, json
        lines, json object, jsonl, key value, liste alle, make a table, named entit, preencha, pull out,
        pull the, reply with {, respond with {, sous forme de tableau, structured data, tabela com,
        tabelle mit, tabla con, tabulate, ziehe aus, 抽出, 提取, 抽取, json形式, json格式, 拆分成, 表格, 表に, 表形式, 書き出し,
        リストアップ, csvで, 整理成, 结构化, 标注, 归类, 识别出
        """,
        plain="""
        all dates, all names, alle personen, and nothing else, annotate, are mentioned, as pairs,
        auflisten, aufzahl*, campi, campos, categorise, categorize, champs, classifi*, classify,
        colonne, colonnes, columnas, columns, colunas, comma separated, compila, die spalten, eine pro
        zeile, einer pro zeile, elenca, erfasse, felder, fields, for each one, gather, header,
        identifica, identifie, identify, individua, into a markdown table, json, keys, klassifizier*,
        label, list all, list each, list every, lista de pares, liste, mentioned, metadata, mit den
        spalten, nenne, no header, one per line, parse, recense, recopila, relev*, rellena, schema,
        schlussel, se mencionan, semicolon separated, sentiment, sont mentionnes, spalten, spreadsheet,
        structured, tabela, tabella, tabelle, tabla, tableau, tag, the columns, todas as pessoas, tsv,
        um por linha, uma por linha, un par ligne, una por linea, une par ligne, uno per riga, uno por
        linea, vengono citati, werden erwahnt, with columns, with one of, 一覧, 分類, 字段, 分类, 列出, 列表, 识别,
        一行, 一行ずつ
        """,
        weak="""
        all, amounts, csv, dates, each, every, fechas, list, lista, markdown, namen, names, nombres,
        nomes, nomi, noms, prices, tag each, the following text, todos los, tous les, tutti i, xml, yaml
        """,
    ),
    PromptType.MATH: Cues(
        strong="""
        $x, \\frac, \\int, \\sum, ableitung, derivada, derivar, derivata, derivative, derivee, divisib*,
        ecuacion, ecuaciones, eigenvalue*, eigenvector*, equacao, equacoes, equation, equations,
        equazion*, expected value, fraction, gleichung*, greatest common, induction, integral,
        integrale, irracional, irrational, least common multiple, limit of, limite per, logarithm*,
        matrice, matrix, matriz, nullstell*, polynomial, primes, probabilidad, probabilidade,
        probabilita, probabilite, probability, quadratic, quersumme, recurrence, roots of, solve for,
        standard deviation, sum of the, tangente, theorem, wahrscheinlichkeit, 方程, 確率, 概率, 積分, 积分, 微分,
        导数, 極値, 极值, 解いて, 解方程, 証明, 证明, 因数分解, 行列式, 数列, 円周, 平方根, 二次関数, 不等式, 向量, 矩阵
        """,
        plain="""
        aire, area, arithmetic, ausrechn*, average, berechn*, berechne, beweise, calcola, calcul,
        calcula, calcular, calculate, calcule, calculer, circle, coins, combien, combinations,
        compounded, compute, converge, cosine, cuadrado, demontrer, demuestra, dice, dimostra,
        distancia, dreieck, durchmesser, em quanto tempo, factorial, formula, geometric, how far, how
        many, how many ways, how much, integers, interes, interest, juros, kantenlange*, kilometers,
        kilometre, kilometres, km/h, kreis, ladder, limit, loan, marbles, mean, media, median, modulo,
        montrer, oberflache, odds, parabola, per cent, per hour, percent, percentage, percentuale,
        perimeter, permutation, porcentagem, porcentaje, pourcentage, product, prove, prove that,
        prozent, quanto custa, quanto tempo, racine, radice, radius, raiz, resolva, resolver, resoudre,
        resous, resuelve, risolvi, root, roots, sequence, series, sine, slope, soldes, solve, square,
        steigung, sum, tangent, triangle, triangulo, variance, vector, velocita, vitesse, volume, wie
        lange, wie viel, wie viele, zinsen, 求, 計算, 计算, 一共, 多少, 何個, 何人, 何円, いくら, 面積, 面积, 速さ, 距離, 平均, 割合,
        利息, 直径, 半径, 三角形, 速度, 距离, 百分, 相遇, 等于, 整数, いくつ, 割り切れ, 長さ, 周长, 立方
        """,
        weak="""
        cost, digits, each, gesamt, half, number, numbers, numero, numeros, pay, somma, somme, step,
        steps, suma, summe, total, twice
        """,
    ),
    PromptType.REASONING: Cues(
        strong="""
        acertijo, always lie, brain teaser, brainteaser, chi mente, culprit, deduc*, dit toujours, does
        it follow, enigma, etape par etape, exactly two, explain your reasoning, hipotes*, how you
        exclude, hypothes*, indovinello, ipotes*, justify your, knaves, knights, liar, liars, logically,
        mais provavel, mas probable, most likely, only one of them, paso a paso, passo a passo,
        pianifica, plan a, plan my, plan the, plane, planeje, planifica, planifie, pros and cons,
        puzzle, quem mente, qui ment, quien miente, raciocine, raciocinio, ragionamento, raisonne*,
        ratsel, razona*, riddle, root cause, schritt fur schritt, seating, step by step, syllogism, tell
        the truth, tells the truth, think it through, wage die, wahrscheinlichste, weigh the options,
        wer lugt, what can we conclude, which explanation, who stole, wie findet man heraus, 正直者, 嘘つき,
        推理, 説真話, 说真话, 谎, 天平, 一步一步, 論理, 逻辑, 前提, 犯人, 凶手, 谁是, 可能的原因, 仮説, 計画を立て
        """,
        plain="""
        a cote de, abwag*, accanto, al lado, ao lado de, apenas um, argument, assumptions, aufgaben,
        causa, cause, causes, choix entre, choose between, conclua, conclude, conclusion, consequences,
        constraints, conviene, crosses, decide, decide between, decides, decidir, deduco, deduza,
        deduzco, diagnos*, diagnose, es seguro que, evaluate, exclude, excludes, explain how you,
        explanation, faut il, figure out, findet man heraus, folgere, grunde, how can you tell, how do
        you find out, hypothesis, if all, in what order, infer, junto a, justify, lamp, le choix, lie,
        lies, likely, logic, lohnt sich, moves, neben, next to, nur eine, nur einer, older, only one,
        opposite, options, ordem, orden, order should i, ordine, ordre, peser, plan, reason, reasoning,
        reihenfolge, round table, scenario, schedule, se todos os, se tutti i, seulement un, shorter,
        should i, should we, si todos los, si tous les, sitzen, sitzt, solo una, solo uno, sospechoso,
        stimmt, strategy, suspect, suspects, suspeito, switch, switches, taches, taller, tareas,
        tarefas, tasks, trade off, trade offs, tradeoff, truth, ursache, vale a pena, vaut il mieux,
        weigh, wenn alle, what happens if, what is going on, which box, which order, who is the, who
        sits, work out, younger, 理由, 順番, 原因, 推断, 谁, 誰が, どちらが, 順序, 判断, 计划, 应该选, 假设, 推出, 顺序, 紧挨
        """,
        weak="""
        because, both, boxes, cannot, facts, first, if, last, left, must, neither, none, order, perche,
        porque, pourquoi, right, then, therefore, warum
        """,
    ),
    PromptType.QA: Cues(
        strong="""
        capital of, cual es la diferencia, qual a diferenca, qual e a diferenca, qual e la differenza,
        quelle est la difference, stand for, the difference between, was ist der unterschied, what
        exactly is, what is the difference, who discovered, who invented
        """,
        plain="""
        advantages, avantages, bedeutet, define, diferenca, diferencia, difference, differences,
        differenza, disadvantages, e verdade, es verdad, est ce vrai, explains, fact, how come, how
        does, how far, how long, how many, in einfachen worten, in simple terms, in simple words, is it
        true, meaning, significa, signifie, stimmt es, tell me about, unterschied, vantagens, vantaggi,
        ventajas, vorteile, what are, what does, why are, why do, why does, why is, とは, 何ですか, 是什么, 什么是,
        哪国, 为什么, 区别, 違い, 説明して, なぜ, どうして, 解释, 介绍, 教えて, 意味, 仕組み, 原理, 怎么回事, 有哪些, 哪些
        """,
        weak="""
        animal, answer, answers, body, briefly, capital, city, countries, country, discovered, erklar,
        erklare, exam, explain, explica, explique, history, invented, mountain, planet, river, spiega,
        year
        """,
    ),
    PromptType.RAG: Cues(
        strong="""
        a partir de los, a partir des, a partir do texto, according to the, anhand der, answer from,
        answer only from, articles below, aus dem text, based on the, based only, citing, com base, con
        base en, context above, d apres le, d apres les, dal testo, de acordo com o texto, de acuerdo
        con el, die auszuge, do they agree, en t appuyant, following context, following documents, from
        the documents, from the text, gemass, given context, given the following, given the two, if it
        is not in, if the answer is not, in base al, in den unterlagen, in the text, information below,
        inserted below, knowledge base, knowledgebase, laut de*, laut protokoll, nel documento, not
        stated, only the source, pages below, pieces of context, relevant articles, relevant documents,
        retrieved, search results, secondo il testo, segun el, segundo o texto, selon le, sources below,
        the context, the excerpts, the following information, the passage, use only, use the following,
        use the results, using only, what does the text say, 根据, 根據, 基于, をもとに, に基づ, 参考资料, 资料, 資料, によると,
        文章を読んで, 本文, 依据, 阅读以下, 文中, 材料, 请据此, 据此
        """,
        plain="""
        abschnitt, according, articles, attached, auszug, auszuge, brano, chunk, cita, citando, citar,
        cite, contesto, context, contexte, contexto, contradict, contradicts, d apres, document,
        documento, documentos, documents, domanda, domande, emails below, excerpt, excerpts, extrait,
        extraits, fonti, frage, handbuch, here are, here is the, kontext, laut, manual, notes below,
        passage, passages, pergunta, policy, pregunta, protokoll, quellen, question, quote, relevant
        pages, report a, secondo, segundo, selon, snippets, source, sources, the contract, the manual,
        the policy, the report, welcher abschnitt, which rule, which section, widersprechen, zitiere,
        质问, 質問, 问题, 出处, 引用, 文書, 参照, 文档, 阅读
        """,
        weak="""
        answer, antworte, beantworte, below is, page, pasted, reponds, responda, responde, rispondi,
        says, unknown
        """,
    ),
    PromptType.SUMMARIZATION: Cues(
        strong="""
        an abstract, auf den punkt, boil down, boil this down, bullet points, condense, de que fala, de
        que trata, de quoi parle, di cosa parla, em poucas palavras, em topicos, en bref, en pocas
        palabras, executive summary, fasse, highlights, ideas principales, ideias principais, in a
        nutshell, in breve, in one sentence, in sintesi, kernaussagen, key facts, key points,
        kurzfassung, l essentiel, main points, main takeaways, minutes of this, no time to read, on was
        about, points cles, pontos principais, punti chiave, punti principali, puntos clave, recap,
        resuma, resume, resumen, resumer, resumes, resumir, resumo, riassum*, riassunto, short version,
        sintesi, sintetizza, stichpunkt, sum up, summaries, summarise, summarize, summarizing, summary,
        synthese, synthetise, takeaways, the minutes of, tl;dr, tldr, wesentliche, what is this text
        about, what was decided, who has to do what, wichtigsten punkte, worum geht es, write the
        minutes, write up the, zusammenfass*, zusammenfassung, zusammengefasst, 要約, まとめて, 要点, 箇条書き, 总结,
        概括, 摘要, 概述, 归纳, かいつまんで, 概要, 要旨, ポイントを, 简述, 主要内容, 核心内容, 提炼, 何について, 讲了什么
        """,
        plain="""
        boil, bullet, bullets, catch me up, digest, einfachen worten, em duas linhas, en deux lignes, en
        dos lineas, frases, gist, headline, i missed, in drei satzen, in due righe, in three lines, in
        two lines, in zwei satzen, lines at most, main idea, main ideas, minutes, needs to know, on
        holiday, on vacation, outline, overview, points, pontos, punti, puntos, satze, stichworte,
        topicos, what happened, wrap up, 一句话, 短くまとめ, 三行, 两句话
        """,
        weak="""
        article, articolo, articulo, artikel, brief, long, meeting, paragraph, sentences, short, text,
        thread, words
        """,
    ),
    PromptType.TRANSLATION: Cues(
        strong="""
        auf deutsch, auf englisch, auf franzosisch, auf italienisch, auf portugiesisch, auf spanisch,
        come si dice, comment dit on, como se dice, como se diz, em alemao, em espanhol, em frances, em
        ingles, em portugues, en aleman, en allemand, en anglais, en espagnol, en espanol, en frances,
        en ingles, en italien, en portugues, french please, german please, how do you say, in francese,
        in french, in german, in inglese, in italian, in japanese, in portuguese, in spagnolo, in
        spanish, in tedesco, ins deutsche, ins englische, into chinese, into french, into german, into
        italian, into japanese, into portuguese, into spanish, italian please, japanese please,
        przetlum*, put this into, spanish please, tolmach*, traduc*, traducao, traduci, tradui*,
        traduis, tradur*, traduttore, traduz*, translat*, ubersetz*, version portugaise, vertaal*, wie
        heisst, wie sagt man, переведи, перевод, 翻訳, 訳して, に訳, 翻译, 译成, 译为, 번역, 英語に, 日本語に, 中国語に, 用英语怎么说,
        翻成, 译文, 英訳, 和訳, 英語で, 用英语
        """,
        plain="""
        aleman, alemao, allemand, anglais, chinese, chinesisch*, deutsch, deutsche, englisch, englische,
        espagnol, espanhol, espanol, francais, frances, francese, franzosisch*, french, german, in
        english, ingles, inglesa, inglese, into english, italian, italien, italienisch*, japanese,
        japanisch*, korean, portoghese, portugais, portugiesisch*, portugues, portuguese, spagnolo,
        spanisch*, spanish, tedesco, to english, 英語, 日語, 日语, 英文, 中国語, フランス語, ドイツ語, 法语, 德语, 中文
        """,
        weak="""
        english, idioma, language, languages, langue, lingua, localise, localize, phrase, sentence,
        sprache
        """,
    ),
    PromptType.WRITING: Cues(
        strong="""
        a dialogue, a text for, annonce, annuncio, anuncio, ballad, best man, bilhete, birthday card,
        blog, blog post, brainstorm, canzone, carta a, carta de, chanson, come up with, conte, conto,
        convite, courriel, cover letter, cronica, cuento, dankesrede, diary entry, discorso, discours,
        discurso, einen text fur, einladung, erzahlung, essay, eulogy, fable, fairytale, fiaba,
        filastrocca, gedicht, geschichte, grusskarte, guion, haiku, historia, invitacion, invitation,
        invito, kurzgeschichte, letter to, lettera, lettre de, liedtext, limerick, love letter, lullaby,
        lyrics, marchen, name ideas, newsletter, nouvelle, novel, obituary, opening scene, poem, poema,
        poeme, poesia, press release, product description, racconto, rede, relato, roman, screenplay,
        short story, slogan, slogans, something to read out, song about, sonnet, speech, speech for,
        storia, story, text for, thank you note, toast, um texto para, un testo per, un texte pour, un
        texto para, verse, wedding, werbetext, 詩を, 小説, 物語, 手紙を, 作文, 散文, 诗, 故事, 小说, 一封, 道歉信, 感謝, 歌詞,
        エッセイ, スピーチ, 台本, 俳句, キャッチコピー, 童话, 演讲稿, 歌词, 剧本, 文案, 贺词, 作一首, 编一个, 邀请函
        """,
        plain="""
        absatze, advert, anschreiben, anuncie, apology, bio, birthday, brief, chapter, character,
        characters, complaint, componi, compose, continue, correo, creative, cria, crie, dichte, draft,
        e mail, ecrire, ecris, ecrivez, email, entwirf, escreva, escrever, escribe, escribir, estrofes,
        floskeln, homepage, imagine, instagram, invent, inventa, invente, invite, letter, mensagem,
        mensaje, messaggio, monologue, nachricht, narrator, novelist, paragraphs, plot, prologue,
        racconta, raconte, redacta, redige, rediger, redija, rhym*, rimadas, scene, schreib, schreibe,
        schreiben, screenwriter, scrivere, scrivi, stanzas, strofen, texto sobre, tone, tweet, verfass*,
        website text, write, writer, 書いて, 書け, 写一, 写首, 写篇, 帮我写, 写, 作って, メールを, 考えて, 邮件, 书信
        """,
        weak="""
        cancao, cancion, caption, funny, lied, post, romantic, short, song, tagline, title, warm, words
        """,
    ),
    PromptType.CHAT: Cues(
        plain="""
        :), :d, ;), ^^, aburrid*, boa noite, bonne nuit, bored, buonanotte, ca va, cansad*, come stai,
        como vai, danke, do you ever, do you like, entediad*, entediado, feel, feeling, good morning,
        good night, gracias, grazie, guess what, gute nacht, haha, happy, hehe, how are you, how was
        your, joke, langweilig, lol, lonely, merci, miss, mood, mude, obrigad*, que tal, rs, see you,
        tell me a joke, thank, thanks, tired, triste, what s up, wie geht, ありがとう, 落ち込, 谢谢, 哈哈, 压力, 心情,
        元気, おやすみ, 疲れた, 好累, 聊聊, 晚安, 怎么样
        """,
        weak="""
        ayer, boss, boyfriend, cat, dog, friend, gestern, girlfriend, heute, hier, hoje, hoy, i ll, i m,
        ieri, like, love, me, my, oggi, ontem, really, today, tonight, weekend, yesterday, you, your
        """,
    ),
}

# A request that opens with one of these, and asks for nothing else, is talk.
GREETINGS: Final = frozenset(
    """hi hello hey yo heya hiya morning greetings sup oi ola opa bom hola buenas buenos hallo na moin servus gruss
    salut coucou bonjour bonsoir ciao salve buongiorno buonasera guten привет hej""".split()  # noqa: SIM905
) | {"こんにちは", "こんばんは", "おはよう", "やあ", "你好", "您好", "嗨", "早上好", "안녕"}

QUESTION_WORDS: Final = frozenset(
    """what whats who whose when where why how which is are does do did can could should was were
    qual quais quem quando onde por porque que como quanto quantos quantas cual quien quienes cuando donde cuanto cuantos
    cuantas wer was wann wo warum wie welche welcher welches wieso weshalb ist sind quel quelle quels quelles qui quand ou
    pourquoi comment combien est chi che cosa dove perche quale quali quanti jaka jaki co kto kiedy""".split()  # noqa: SIM905
)

NEGATIONS: Final = frozenset(
    "not no nor neither never nobody none nao nem nunca ni tampoco nicht kein keine keiner nie pas jamais aucun non ne mai nessuno".split()  # noqa: SIM905
)

# Pasted sources look like this.
SOURCE_MARKS: Final = (
    "[1]", "<document", "<context", "<source", "chunk 1", "source 1", "document 1", "context:", "contexto:",
    "kontext:", "contexte :", "documents :", "documento:", "texto:", "manual:", "extrait a", "article a", "kb-",
    "passage\n", "passage:", "protokoll", "資料1", "資料：", "参考资料", "材料", "### context", "background:", "sources:",
    "search results", "<snippet",
)  # fmt: skip

CODE_MARKS: Final = (
    "def ", "return ", "import ", "function ", "const ", "let ", "var ", "#include", "public ", "class ", "fn ", "=> ",
    "();", "): ", "#!/", "if (", "for (", "select ", "<?php", "func ", "</", "{\n", ";\n",
)  # fmt: skip

# ruff: noqa: RUF001 - the signs are the models' own
# Fill in the middle: Qwen, StarCoder, CodeLlama, DeepSeek, Codestral, Granite.
FIM_MARKS: Final = (
    "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<PRE>",
    "<SUF>", "<MID>", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "[SUFFIX]", "[PREFIX]", "<|fim_begin|>", "<|fim_hole|>",
)  # fmt: skip

# A system prompt, or a raw prompt, that describes tools in words.
TOOL_PHRASES: Final = (
    "tool call", "tool_call", "<tools>", "tool use", "function call", "available actions", "action input", "observation:",
    "following tools", "set of tools", "use these tools", "access to tools", "call a tool", "through actions", "one command per", "exactly one command", "in each turn", "tools:", "one tool per",
    "one action per", "werkzeug", "herramientas", "ferramentas", "outils disponibles", "strumenti disponibili",
    "execute_command", "function-calling", "available tools", "you can call", "call exactly one", "ツール", "工具",
)  # fmt: skip
