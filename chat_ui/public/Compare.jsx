import { Button } from "@/components/ui/button"
import { Markdown } from "@/components/markdown"

// Two answers side by side; on a narrow page one below the other.
export default function Compare() {
  const finished = props.sides.every((side) => side.done)
  return (
    <div className="compare grid w-full gap-4 md:grid-cols-2">
      {props.sides.map((side, number) => (
        <div key={number} className="compare-side flex min-w-0 flex-col gap-2 rounded-xl border p-3">
          <div className="text-sm font-semibold">{side.label}</div>
          <div className="compare-text flex-grow">
            <Markdown allowHtml={false} latex={false} renderMarkdown={true} refElements={[]}>{side.text}</Markdown>
          </div>
          {side.error && <div role="alert" className="text-sm text-destructive">{side.error}</div>}
          <div className="compare-figures text-xs text-muted-foreground">
            {side.waiting || side.figures.join(" · ")}
          </div>
          {finished && (
            <Button variant={props.chosen === number ? "default" : "outline"} size="sm" className="compare-choose"
              disabled={props.chosen === number}
              onClick={() => callAction({ name: "choose", payload: { id: props.message, side: number } })}>
              {props.chosen === number ? "The conversation goes on with this" : "Go on with this"}
            </Button>
          )}
        </div>
      ))}
    </div>
  )
}
