import { RotateCcw } from "lucide-react"

// What stands below an answer: the model, its figures, and what one can do with it.
export default function Answer() {
  return (
    <div className="answer text-xs text-muted-foreground">
      {props.waiting && <div className="answer-waiting text-sm">{props.waiting}</div>}
      {props.error && <div role="alert" className="answer-error text-sm text-destructive">{props.error}</div>}
      {props.notes.map((note) => <div key={note} className="answer-note">{note}</div>)}
      {props.done && <div className="answer-figures">{[props.label, ...props.figures].join(" · ")}</div>}
      {props.done && (
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
