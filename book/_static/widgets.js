// Runs between require.js and the widget manager, on pages that have widgets.
(() => {
  // The manager looks for its fonts where require.js believes it was loaded from: tell it.
  const folder = new URL("vendor/widgets/", document.currentScript.src).href;
  const paths = {};
  for (const name of ["base", "controls", "html-manager", "html-manager/dist/libembed-amd"]) {
    paths[`@jupyter-widgets/${name}`] = folder + name.split("/").pop();
  }
  window.require.config({ paths });

  // The manager typesets labels as MathJax 2 does; answer it with MathJax 3, whenever that arrives.
  let current = window.MathJax;
  const Hub = {
    Queue(call) {
      const element = call[2];
      const drawn = current && current.startup && current.startup.promise;
      if (drawn) drawn.then(() => current.typesetPromise([element]));
    },
  };
  Object.defineProperty(window, "MathJax", {
    configurable: true,
    get: () => (current ? Object.assign(current, { Hub }) : { Hub }),
    set: (value) => {
      current = value;
    },
  });
})();
