"use strict";
(() => {
const byId = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
{% include "page.js" %}
{% include "sources.js" %}
{% include "curves.js" %}
{% include "player.js" %}
})();
