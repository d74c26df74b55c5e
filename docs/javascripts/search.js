// The search refuses a word with two hyphens before it, as the names of options have: --finetune.old
{
  const field = document.querySelector("[data-md-component=search-query]")
  const suggestion = document.querySelector("[data-md-component=search-suggest]")
  const { get, set } = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value")
  Object.defineProperty(field, "value", {
    get() {
      const typed = get.call(this)
      const sought = typed.replace(/(^|\s)--(?=\w)/g, "$1")
      suggestion.style.visibility = sought === typed ? "" : "hidden" // it would not lie where the words are
      return sought
    },
    set,
  })
}
