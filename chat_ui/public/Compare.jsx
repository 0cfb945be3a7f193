import { RotateCcw } from "lucide-react"
import { Button } from "@/components/ui/button"
import { Markdown } from "@/components/markdown"

// Two answers side by side; on a narrow page one below the other.
export default function Compare() {
  const finished = props.sides.every((side) => side.done)
  return (
    <div className="compare text-xs text-muted-foreground">
      <div className="compare-sides">
        {props.sides.map((side, number) => (
          <div key={number} className="compare-side rounded-xl border p-4">
            <div className="text-sm font-semibold text-foreground">{side.label}</div>
            <div className="compare-text text-base text-foreground">
              <Markdown allowHtml={false} latex={false} renderMarkdown={true} refElements={[]}>{side.text}</Markdown>
            </div>
            {side.error && <div role="alert" className="answer-error text-sm text-destructive">{side.error}</div>}
            {side.notes.map((note) => <div key={note} className="answer-note">{note}</div>)}
            <div className="answer-figures">{side.waiting || side.figures.join(" · ")}</div>
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
      {finished && (
        <div className="answer-buttons">
          <button className="answer-regenerate"
            onClick={() => callAction({ name: "regenerate", payload: { id: props.message } })}>
            <RotateCcw size={14} /> Regenerate
          </button>
          <a className="answer-export" download href={`/export/${props.thread}.json`}>JSON</a>
          <a className="answer-export" download href={`/export/${props.thread}.md`}>Markdown</a>
        </div>
      )}
    </div>
  )
}
