// The viewer of a case: three planes through one voxel, in radiological orientation, drawn on canvases.
const source = document.getElementById("volume");
if (source) {
  const viewer = document.getElementById("viewer-body");
  const status = document.getElementById("viewer-status");
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const open = async () => {
    viewer.hidden = false;
    status.hidden = true;
    const { shape, spacing, corner: first, block, sequences, images, mask: packed } = JSON.parse(source.textContent);
    const volumes = images.map(() => null);
    const mask = await unpack(packed);
    const stride = [1, shape[0], shape[0] * shape[1]];
    // Axis across, axis along columns, axis along rows; columns and rows run from high to low: the right of the
    // patient is on the left, the front or the top uppermost.
    const planes = [[2, 0, 1], [1, 0, 2], [0, 1, 2]];
    const at = shape.map((n) => n >> 1);
    const select = document.getElementById("viewer-sequence");
    const zoom = document.getElementById("viewer-zoom");
    const outline = document.getElementById("viewer-mask");
    const cross = document.getElementById("viewer-cross");
    const panes = planes.map(([across, columns, rows], k) => {
      const figure = viewer.querySelectorAll("figure")[k];
      return {
        across, columns, rows, canvas: figure.querySelector("canvas"), slider: figure.querySelector("input"),
        caption: figure.querySelector("output"), small: document.createElement("canvas"),
      };
    });
    // Pixels of the screen per mm, and the corner of the part shown in mm from the picture's left upper one.
    const scaleOf = (pane) => {
      const { width, height } = pane.canvas;
      const size = [shape[pane.columns] * spacing[pane.columns], shape[pane.rows] * spacing[pane.rows]];
      const scale = Math.min(width / size[0], height / size[1]) * Number(zoom.value);
      const corner = [pane.columns, pane.rows].map((axis, k) => {
        const middle = (shape[axis] - at[axis] - 0.5) * spacing[axis];
        const shown = (k ? height : width) / scale;
        return shown >= size[k] ? (size[k] - shown) / 2 : Math.max(0, Math.min(size[k] - shown, middle - shown / 2));
      });
      return { scale, corner };
    };
    const draw = (pane) => {
      const { across, columns, rows, canvas, small } = pane;
      const volume = volumes[select.selectedIndex];
      if (!volume) return;
      const [width, height] = [shape[columns], shape[rows]];
      [small.width, small.height] = [width, height];
      const context = small.getContext("2d");
      const picture = context.createImageData(width, height);
      const start = at[across] * stride[across];
      const voxel = (column, row) => start + (width - 1 - column) * stride[columns] + (height - 1 - row) * stride[rows];
      for (let row = 0, p = 0; row < height; row++) {
        for (let column = 0; column < width; column++, p += 4) {
          const value = volume[voxel(column, row)];
          picture.data[p] = picture.data[p + 1] = picture.data[p + 2] = value;
          picture.data[p + 3] = 255;
        }
      }
      context.putImageData(picture, 0, 0);
      const { scale, corner } = scaleOf(pane);
      const [dx, dy] = [scale * spacing[columns], scale * spacing[rows]];
      const [x0, y0] = [-corner[0] * scale, -corner[1] * scale];
      const out = canvas.getContext("2d");
      out.fillStyle = "#000000";
      out.fillRect(0, 0, canvas.width, canvas.height);
      out.imageSmoothingEnabled = Math.min(dx, dy) < 4;
      out.drawImage(small, x0, y0, width * dx, height * dy);
      if (outline.checked) {
        const inside = (column, row) =>
          column >= 0 && row >= 0 && column < width && row < height && mask[voxel(column, row)] > 0;
        out.beginPath();
        for (let row = 0; row < height; row++) {
          for (let column = 0; column < width; column++) {
            if (!inside(column, row)) continue;
            for (const [u, v, a, b, c, d] of [[-1, 0, 0, 0, 0, 1], [1, 0, 1, 0, 1, 1], [0, -1, 0, 0, 1, 0], [0, 1, 0, 1, 1, 1]]) {
              if (inside(column + u, row + v)) continue;
              out.moveTo(x0 + (column + a) * dx, y0 + (row + b) * dy);
              out.lineTo(x0 + (column + c) * dx, y0 + (row + d) * dy);
            }
          }
        }
        out.strokeStyle = "#ffd23f";
        out.lineWidth = 1.5;
        out.stroke();
      }
      if (cross.checked) {
        const x = Math.round(x0 + (width - at[columns] - 0.5) * dx) + 0.5;
        const y = Math.round(y0 + (height - at[rows] - 0.5) * dy) + 0.5;
        const gap = 12;
        out.beginPath();
        for (const [from, to] of [[[0, y], [x - gap, y]], [[x + gap, y], [canvas.width, y]], [[x, 0], [x, y - gap]], [[x, y + gap], [x, canvas.height]]]) {
          out.moveTo(...from);
          out.lineTo(...to);
        }
        out.strokeStyle = "rgba(86, 180, 233, 0.7)";
        out.lineWidth = 1;
        out.stroke();
      }
      pane.slider.value = at[across];
      pane.caption.textContent = first[across] + at[across] * block[across];
    };
    const show = () => panes.forEach(draw);
    const move = (axis, index) => {
      at[axis] = Math.max(0, Math.min(shape[axis] - 1, index));
      show();
    };
    const load = async () => {
      const k = select.selectedIndex;
      volumes[k] ??= await unpack(images[k]);
      viewer.dataset.shown = sequences[k];
      show();
    };
    const fit = () => {
      for (const { canvas } of panes) {
        const box = canvas.getBoundingClientRect();
        canvas.width = Math.max(1, Math.round(box.width * devicePixelRatio));
        canvas.height = Math.max(1, Math.round(box.height * devicePixelRatio));
      }
      show();
    };
    for (const pane of panes) {
      pane.slider.max = shape[pane.across] - 1;
      pane.slider.addEventListener("input", () => move(pane.across, Number(pane.slider.value)));
      pane.canvas.addEventListener("wheel", (event) => {
        event.preventDefault();
        move(pane.across, at[pane.across] - Math.sign(event.deltaY));
      }, { passive: false });
      const pick = (event) => {
        const box = pane.canvas.getBoundingClientRect();
        const { scale, corner } = scaleOf(pane);
        [[pane.columns, event.clientX - box.left, box.width, pane.canvas.width, corner[0]],
          [pane.rows, event.clientY - box.top, box.height, pane.canvas.height, corner[1]]].forEach(([axis, px, size, pixels, from]) => {
          const mm = (px / size) * pixels / scale + from;
          at[axis] = Math.max(0, Math.min(shape[axis] - 1, shape[axis] - 1 - Math.floor(mm / spacing[axis])));
        });
        show();
      };
      pane.canvas.addEventListener("pointerdown", pick);
    }
    for (const control of [zoom, outline, cross]) control.addEventListener("change", show);
    select.addEventListener("change", load);
    for (const row of document.querySelectorAll("[data-place]")) {
      const button = document.createElement("button");
      const cell = row.cells[0];
      button.type = "button";
      button.title = "Show in the viewer";
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        row.dataset.place.split(" ").forEach((index, axis) => (at[axis] = Number(index)));
        for (const other of row.parentElement.rows) other.classList.toggle("shown", other === row);
        if (zoom.value === "1") zoom.value = "3";
        show();
        document.getElementById("viewer").scrollIntoView({ block: "start" });
      });
    }
    fit();
    addEventListener("resize", fit);
    const places = document.querySelector("[data-place]")?.dataset.place;
    if (places) places.split(" ").forEach((index, axis) => (at[axis] = Number(index)));
    await load();
    document.documentElement.dataset.viewer = "ready";
  };
  open().catch((error) => {
    viewer.hidden = true;
    status.hidden = false;
    status.textContent = `The viewer cannot run in this browser (${error.message}); the slices below do not need it.`;
  });
}
