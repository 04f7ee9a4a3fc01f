"""The page's HTML, for Jinja, which escapes everything that is put in."""

from __future__ import annotations

BASE = """<!doctype html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
script-src {{ bundle_hash }} {{ script_hash }}; style-src {{ style_hash }}; base-uri 'none'; \
form-action 'none'">
{% if refresh %}<meta http-equiv="refresh" content="{{ refresh }}">
{% endif %}<link rel="icon" href="data:,">
<title>{{ title }} · fedmoe</title>
<style>{{ css }}</style>
</head>
<body>
<header>
<div class="top"><h1>{{ title }}</h1>
<button id="theme" type="button" aria-label="Switch between light and dark">◐</button></div>
<p><span class="state {{ state.kind }}">{{ state.kind }}</span>
<span class="quiet">{{ state.note }}</span></p>
{% block nav %}{% endblock %}
<noscript><p class="quiet">Without JavaScript the tables are here, but no chart.</p></noscript>
</header>
<main>
{% block main %}{% endblock %}
</main>
<footer>Written by fedmoe {{ version }}, <time id="written" data-epoch="{{ epoch }}">{{ written }}\
</time><span id="age"></span>. One file, no network.</footer>
<script type="application/json" id="data">{{ data }}</script>
<!--
Vega, Vega-Lite and Vega-Embed. Copyright (c) 2015-2026, University of Washington Interactive Data
Lab and contributors. All rights reserved.

Redistribution and use in source and binary forms, with or without modification, are permitted
provided that the following conditions are met:

1. Redistributions of source code must retain the above copyright notice, this list of conditions
   and the following disclaimer.

2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions
   and the following disclaimer in the documentation and/or other materials provided with the
   distribution.

3. Neither the name of the copyright holder nor the names of its contributors may be used to endorse
   or promote products derived from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR
IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND
FITNESS FOR A PARTICULAR PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR
CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL
DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF USE,
DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER
IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF
THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
-->
<script>{{ bundle }}</script>
<script>{{ script }}</script>
</body>
</html>
"""

MACROS = """
{% macro table(table, kind="", long="") %}
<div class="wide" tabindex="0"><table class="sortable {{ kind }}">
<thead><tr>{% for name in table.headers %}<th scope="col"><button type="button">{{ name }}</button>\
</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr{% if loop.index0 in table.bad %} class="bad"{% endif %}>\
{% for cell in row %}<td{% if table.headers[loop.index0] == long %} class="long"{% endif %}\
{% if cell.sort is not none %} data-sort="{{ cell.sort }}"{% endif %}>{{ cell.text }}</td>\
{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endmacro %}

{% macro chart(name, chart, remark="") %}
<figure id="{{ name }}"{% if chart.spec %} data-chart="{{ name }}"{% endif %}>\
<h3>{{ chart.title }}</h3>
{% if chart.about or remark %}<figcaption>{{ chart.about }} {{ remark }}</figcaption>{% endif %}
{% if not chart.spec %}<p class="quiet">No numbers yet.</p>{% endif %}</figure>
{% endmacro %}

{% macro facts(facts) %}
<dl class="facts">{% for fact in facts %}<div class="fact"><dt>{{ fact.name }}</dt>\
<dd>{{ fact.value }}</dd>{% if fact.note %}<dd>{{ fact.note }}</dd>{% endif %}</div>
{% endfor %}</dl>
{% endmacro %}

{% macro setting(each) %}
<tr{% if each.changed %} class="changed"{% endif %}><td><code>{{ each.key }}</code></td>\
<td class="long"><code>{{ each.value }}</code></td><td class="long"><code>\
{{ each.default if each.default is not none else "?" }}</code></td></tr>
{% endmacro %}

{% macro settings(settings, changed) %}
{% if changed %}<div class="wide"><table class="text"><thead><tr><th>differs from the default</th>\
<th>value</th><th>default</th></tr></thead><tbody>
{% for each in changed %}{{ setting(each) }}{% endfor %}</tbody></table></div>
{% else %}<p>{{ "All settings are the defaults." if settings | selectattr("default") | list
else "The app's defaults are not at hand here, so nothing is marked." }}</p>{% endif %}
<details><summary>All {{ settings | length }} settings</summary><div class="wide">\
<table class="text"><thead><tr><th>key</th><th>value</th><th>default</th></tr></thead><tbody>
{% for each in settings %}{{ setting(each) }}{% endfor %}</tbody></table></div></details>
{% endmacro %}
"""

RUN = """{% extends "base" %}{% from "macros" import table, chart, facts, settings %}
{% block nav %}<nav><a href="#curves">Curves</a>{% if classes %}\
<a href="#classes">Classes</a>{% endif %}{% if clients.rows %}<a href="#clients">Clients</a>\
{% endif %}{% if routing %}<a href="#experts">Experts</a>{% endif %}{% if inside or curves %}\
<a href="#scheme">Inside the scheme</a>{% endif %}<a href="#failures">Failures</a>{% if samples %}\
<a href="#samples">Samples</a>{% endif %}<a href="#rounds">Rounds</a>\
<a href="#config">Configuration</a></nav>{% endblock %}
{% block main %}
<h2 id="summary">Summary</h2>
{{ facts(summary) }}
{% if notable %}<p class="quiet">Set differently from the defaults: {% for each in notable %}<code>\
{{ each.key }} = {{ each.value }}</code>{{ ", " if not loop.last }}{% endfor %}.</p>{% endif %}

<h2 id="curves">Accuracy, loss, bytes, time</h2>
<p class="quiet">Global model: scored on {{ scored }}. Clients: on their own test data; what a
client received in a round is the model after the round before, and stands there. Their line is the
mean, their band goes from the lowest to the highest, and a dot is one client, where they are few.
Click a name under a chart to hide or show it.</p>
<div class="row">{{ chart("accuracy", charts.accuracy) }}{{ chart("loss", charts.loss) }}</div>
{% if clients.rows %}<div class="row">{{ chart("bytes", charts.bytes) }}\
{{ chart("seconds", charts.seconds) }}</div>{% endif %}

{% if classes %}<h2 id="classes">Classes</h2>
<p class="quiet">The server's test set after round {{ classes_round }}. Click a column to
sort by it.</p>
<div class="row">{{ chart("confusion", classes.chart) }}</div>
{{ table(classes.table) }}
{% endif %}
{% if clients.rows %}<h2 id="clients">Clients</h2>
<p class="quiet">Figures of the last round that a client was in; bytes and lost state over all
rounds. Click a column to sort by it.</p>
{{ table(clients) }}
{% if by_client.spec %}<div class="row">{{ chart("by-client", by_client,
"Each client in the last round it was in." ~ dots_remark) }}</div>{% endif %}{% endif %}

{% if routing %}<h2 id="experts">Experts</h2>
<div class="maps">{% for name, each in routing.items() %}\
{{ chart(name, each, remarks[each.cube]) }}
{% endfor %}</div>{% endif %}

{% if inside or curves %}<h2 id="scheme">Inside the scheme</h2>
<p class="quiet">Worked out by the server from the updates it received. A cell with a × has no
number: nobody, or only one client, trained that expert.</p>
<div class="row">{% for name, each in curves.items() %}{{ chart(name, each) }}
{% endfor %}</div>
<div class="maps">{% for name, each in inside.items() %}\
{{ chart(name, each, remarks[each.cube]) }}{% endfor %}</div>{% endif %}

<h2 id="failures">Failures</h2>
{% if failures.rows %}{{ table(failures, "text", "reason") }}
{% if failures_left %}<p class="quiet">And {{ failures_left }} more in metrics.jsonl.</p>{% endif %}
{% else %}<p>None: every client that was asked sent a usable reply.</p>{% endif %}

{% if samples %}<h2 id="samples">Samples</h2>
<p class="quiet">What the global model answered after round {{ samples_round }}.</p>
{% for sample in samples %}<dl class="sample"><dt>prompt</dt><dd><pre>{{ sample.prompt }}</pre></dd>
<dt>expected</dt><dd><pre>{{ sample.expected }}</pre></dd>
<dt>generated</dt><dd><pre>{{ sample.generated or "(nothing)" }}</pre></dd></dl>
{% endfor %}{% endif %}

<h2 id="rounds">Rounds</h2>
{{ table(rounds) }}

<h2 id="config">Configuration</h2>
{{ settings(all_settings, changed) }}
{% endblock %}
"""

COMPARISON = """{% extends "base" %}
{% from "macros" import table, chart, facts, settings %}
{% block nav %}<nav><a href="#curves">Curves</a><a href="#table">Table</a><a href="#runs">Runs</a>\
<a href="#failures">Failures</a><a href="#config">Configuration</a></nav>{% endblock %}
{% block main %}
<h2 id="summary">Summary</h2>
{{ facts(summary) }}
{% if advice %}<p>{{ advice }}</p>{% endif %}

<h2 id="curves">Over the rounds</h2>
<p class="quiet">Mean over the seeds that came to their end; bands are 95 % Student-t intervals of
it, and bars likewise. Click a name under a chart to hide or show it.</p>
{% for part in partitions %}
{% if partitions | length > 1 %}<h3>{{ part.title }}</h3>{% endif %}
<div class="row">{% for name, each in part.charts.items() %}{{ chart(name, each) }}
{% endfor %}</div>
{% endfor %}

<h2 id="table">Table</h2>
{{ table(rows, "fit") }}
<p class="quiet">{{ legend }}</p>

{% if chosen.rows %}<h3>What the grid chose</h3>
<p class="quiet">Mean over the tuning seeds on validation rows.</p>
{{ table(chosen, "text") }}{% endif %}

<h2 id="runs">Runs</h2>
{{ table(runs) }}

<h2 id="failures">Failures</h2>
{% if failures.rows %}{{ table(failures, "text", "reason") }}
{% else %}<p>None: every run came to its end, and every reply was usable.</p>{% endif %}

<h2 id="config">Configuration</h2>
{% if differing.rows %}<h3>What differs between the runs</h3>
{{ table(differing, "text", "settings") }}{% endif %}
<h3>What all runs share</h3>
{{ settings(all_settings, changed) }}
{% endblock %}
"""
